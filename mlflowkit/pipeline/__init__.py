"""Plan and run: fingerprints, journal, store."""
