"""Where runs and results are kept: the journal (SQLite), leases, and the content-addressed store."""
