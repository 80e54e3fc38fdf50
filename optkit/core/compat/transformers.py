"""Configs of transformers."""

from __future__ import annotations

from typing import Any

from optkit.core.compat.versions import attribute


def copy_attention(source: Any, to: Any) -> None:
    """Gives a config the attention implementation that another has (transformers 5.23).

    A module that is no whole model, such as an encoder, does not choose one by itself.
    """
    to._attn_implementation = attribute(source, "_attn_implementation", "transformers")
