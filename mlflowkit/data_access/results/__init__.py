"""What runs write to the stores that their data came from."""
