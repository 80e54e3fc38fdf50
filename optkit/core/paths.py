"""Annotations that say which options of a recipe are paths (`optkit.recipe.paths` makes them absolute)."""

FilePath = str  # a file or a folder
PathOrId = str  # a folder if there is one of this name, else an id of the hub
