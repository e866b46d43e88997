"""mlkit runs."""
