"""Pruning stages, one file each."""
