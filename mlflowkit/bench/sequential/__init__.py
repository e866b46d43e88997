"""Measurement until a gate on time is decided: rounds go on until the intervals decide, within a budget."""
