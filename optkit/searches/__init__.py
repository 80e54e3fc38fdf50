"""Searches: the cheapest variants of a recipe within a loss of quality, over chains and values of its keys."""
