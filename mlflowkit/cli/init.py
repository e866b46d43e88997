"""mlkit init."""
