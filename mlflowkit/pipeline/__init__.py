"""Plan and run: fingerprints, journal, store."""

JOURNAL = "journal.db"
"""Name of the journal in a state folder; here, so that who only looks for it need not import SQLAlchemy."""
OBJECTS = "objects"
"""Folder of the store in a state folder."""
