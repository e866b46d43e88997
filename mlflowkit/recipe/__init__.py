"""Recipes: composed by Hydra, checked by pydantic, located to file:line:column."""
