"""Columns of free text: their tokens, and the numbers that those are hashed to."""
