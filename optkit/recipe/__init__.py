"""Recipes: composed, checked, and planned before any work."""
