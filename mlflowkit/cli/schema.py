"""mlkit schema."""
