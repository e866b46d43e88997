"""Questions to git, and files from its objects."""
