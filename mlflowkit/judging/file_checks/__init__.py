"""Data checks that a team already has in files: what the files say, read without libraries that run them."""
