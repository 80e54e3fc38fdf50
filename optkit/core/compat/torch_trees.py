"""Nested tuples, lists and dicts, taken apart and put together as torch's own exporter does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optkit.core.compat.versions import private

if TYPE_CHECKING:
    from torch.utils._pytree import (
        TreeSpec,
        register_pytree_node,
        tree_flatten,
        tree_leaves,
        tree_map,
        tree_map_only,
        tree_structure,
        tree_unflatten,
    )
else:
    TreeSpec = private("torch.utils._pytree.TreeSpec")
    """How leaves make up a tree (torch 2.14)."""
    register_pytree_node = private("torch.utils._pytree.register_pytree_node")
    """Makes a class a node of trees (torch 2.14)."""
    tree_flatten = private("torch.utils._pytree.tree_flatten")
    """The leaves of a tree, and how they make it up (torch 2.14)."""
    tree_leaves = private("torch.utils._pytree.tree_leaves")
    """The leaves of a tree, in order (torch 2.14)."""
    tree_map = private("torch.utils._pytree.tree_map")
    """The tree with a function called on every leaf (torch 2.14)."""
    tree_map_only = private("torch.utils._pytree.tree_map_only")
    """The tree with a function called on the leaves of some types; the others stay (torch 2.14)."""
    tree_structure = private("torch.utils._pytree.tree_structure")
    """How the leaves of a tree make it up, without the leaves (torch 2.14)."""
    tree_unflatten = private("torch.utils._pytree.tree_unflatten")
    """The tree that leaves make up (torch 2.14)."""

__all__ = [
    "TreeSpec",
    "register_pytree_node",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_structure",
    "tree_unflatten",
]
