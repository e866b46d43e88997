"""mlkit predict."""
