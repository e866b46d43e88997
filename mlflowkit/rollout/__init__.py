"""Progressive delivery of a new version: decided by pure functions, executed by a controller."""
