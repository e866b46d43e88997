"""Comments on pull requests: one a recipe and environment, however often it is pushed.

`comment_posting` decides; a module for each forge speaks its API through `forge_client`.
"""
