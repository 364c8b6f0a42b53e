"""Recipes: programs that train a whole model."""
