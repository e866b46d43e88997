"""mlkit status."""
