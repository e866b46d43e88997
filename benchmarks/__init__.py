"""Each module is a command that prints a table, writes JSON, and compares with a peer or a limit in the same run."""
