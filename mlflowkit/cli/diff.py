"""mlkit diff."""
