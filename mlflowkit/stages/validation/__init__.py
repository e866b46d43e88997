"""Checks of a table as a whole: its parts against each other, and against the last version."""
