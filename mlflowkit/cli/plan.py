"""mlkit plan."""
