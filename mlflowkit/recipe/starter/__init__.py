"""From a CSV file to a first recipe: facts of each column, choices with their reasons, and the text of the recipe."""
