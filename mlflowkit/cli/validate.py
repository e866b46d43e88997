"""mlkit validate."""
