"""Checkers of tables by rules that a team keeps in the files of other tools."""
