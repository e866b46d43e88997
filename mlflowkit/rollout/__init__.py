"""How a new version takes over from the one that answers now: decided by pure functions, done by a controller."""
