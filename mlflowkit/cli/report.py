"""mlkit report."""
