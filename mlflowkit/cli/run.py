"""mlkit run."""
