"""Deliveries of finished runs to other systems: what is owed, when it is tried, and what came of it."""
