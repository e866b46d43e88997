"""Plan and run: fingerprints, journal, store."""

JOURNAL = "journal.db"
"""File name of the journal in a state folder (here, so that reading it needs no SQLAlchemy)."""
OBJECTS = "objects"
"""Folder of the store in a state folder."""
RUNS = "runs"
"""Folder with a folder for each run: its report, and below the name of a stage that failed what that kept."""
