"""Adapters: one vendor each. Only wiring imports them, and they do not import one another."""
