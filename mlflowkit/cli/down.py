"""mlkit down."""
