"""Weights of few bits: their grids, the layers that hold them, and how they are rounded."""
