"""What the evaluate stage judges: the gates of a recipe, and the times that some of them are about."""
