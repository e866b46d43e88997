"""What to try, what to stop trying, and what to take: candidates of a space, elimination, front, choice. Pure."""
