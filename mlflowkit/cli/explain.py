"""mlkit explain."""
