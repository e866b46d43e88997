"""What a pipeline's steps do with a run: check the user's code, judge, report in the formats of forges, comment."""
