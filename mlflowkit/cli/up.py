"""mlkit up."""
