"""mlkit show."""
