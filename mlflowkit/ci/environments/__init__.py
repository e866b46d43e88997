"""The environments of a recipe in git: what they want, what is promoted into them, and what became of it."""
