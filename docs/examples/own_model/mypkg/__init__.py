"""A package of one's own: a network, and parts of a recipe."""

from mypkg.net import Net

__all__ = ["Net"]
