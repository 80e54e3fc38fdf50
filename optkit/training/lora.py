"""Low-rank adapters, which are trained in place of a model's weights and merged into them afterwards; by peft."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_count, check_pattern, is_number
from optkit.core.errors import UserError
from optkit.core.extras import need
from optkit.core.instantiate import check_parameters

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoRA:
    """Adapters of linear layers (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).

    Attributes:
        rank: of the update of each weight matrix.
        alpha: the update is scaled by ``alpha / rank``; None is twice the rank.
        dropout: of what goes into an adapter.
        layers: patterns of paths of linear layers; all by default, the model's own head left out.
    """

    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    layers: Sequence[str] = field(default_factory=lambda: ["*"])

    def __post_init__(self) -> None:
        check_count("lora.rank", self.rank)
        if self.alpha is not None:
            check_count("lora.alpha", self.alpha)
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(
                f"{self.dropout!r} is out of range", key="lora.dropout", value=self.dropout, fix="0 to 0.99"
            )

    def check(self, module: nn.Module) -> list[str]:
        """The paths of the layers that get adapters.

        Raises:
            UserError: peft is not installed, a pattern matches no linear layer, or there is none.
        """
        need("language", "adapters", "trainer.lora", ["peft"])
        linears = _linears(module)
        if not linears:
            fix = "set trainer.lora=null"
            raise UserError(f"{type(module).__name__} has no linear layer to adapt", key="trainer.lora", fix=fix)
        chosen = {
            path for p in self.layers for path in check_pattern("trainer.lora.layers", p, linears, "linear layer")
        }
        return [path for path in linears if path in chosen]


def read_lora(given: Mapping[str, Any]) -> LoRA:
    """The adapters of a trainer's ``lora``; raises UserError for fields or values that are none of `LoRA`."""
    if not isinstance(given, Mapping):
        raise UserError(f"{given!r} are no fields of adapters", key="lora", value=given, fix="such as {rank: 16}")
    check_parameters(LoRA, given, "lora")
    return LoRA(**given)


@contextmanager
def adapters(module: nn.Module, lora: LoRA | None, seed: int) -> Iterator[None]:
    """A module with adapters, the only parameters that are trained; merged into its weights at the end.

    Args:
        module: changed in place, and again of its own classes at the end.
        lora: None leaves the module as it is.
        seed: of the adapters' first weights.
    """
    if lora is None:
        yield
        return
    import peft
    import torch

    paths = lora.check(module)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    # peft matches a text as a whole; of a list it takes also what ends with one of its names
    exactly = "|".join(re.escape(path) for path in paths)
    config = peft.LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=exactly)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module)
    yield
    for path in paths:
        adapted: Any = module.get_submodule(path)
        adapted.merge()
        module.set_submodule(path, adapted.get_base_layer())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)


def _linears(module: nn.Module) -> dict[str, nn.Module]:
    """Linear layers by path, without those whose weight another layer has as well (a head tied to its embedding)."""
    from torch import nn

    owners: dict[int, int] = {}
    for inner in module.modules():
        for parameter in inner.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    head = _head(module)
    return {
        path: inner
        for path, inner in module.named_modules()
        if isinstance(inner, nn.Linear) and inner is not head and owners[id(inner.weight)] == 1
    }


def _head(module: nn.Module) -> nn.Module | None:
    """The output layer of the Hugging Face model inside, if it has one."""
    for inner in module.modules():
        if callable(found := getattr(inner, "get_output_embeddings", None)):
            return found()
    return None
