"""How optkit's configs are composed: conf/ on Hydra's search path, and layers that start a part over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from optkit.core.compat.hydra_loading import ConfigLoaderImpl
from optkit.core.compat.hydra_loading import main as hydra_main
from optkit.core.instantiate import TARGET
from optkit.engines.registry import ENGINES
from optkit.recipe.compose import ENGINE_GROUP, mapping, shipped
from optkit.recipe.layers import replaced


class BundledConfig(SearchPathPlugin):
    """Puts conf/ on Hydra's search path, so that a user's recipe needs no line about it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("optkit", f"file://{shipped('conf')}")


def register_engines() -> None:
    """Makes the engines of other packages options of the config group ``engine``; imports none of them."""
    for name in ENGINES.added():
        ConfigStore.instance().store(
            name, {TARGET: ENGINES.path(name)}, group=ENGINE_GROUP, provider=ENGINES.package(name)
        )


class _Loader(ConfigLoaderImpl):
    """Hydra's loader, but a layer may start a part of the config over (`optkit.recipe.layers`).

    What an override starts over takes any new key, without a ``+``.
    """

    typed: Sequence[str] = ()

    def load_configuration(self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> Any:
        self.typed = overrides
        return super().load_configuration(config_name, overrides, *args, **kwargs)

    def _compose_config_from_defaults_list(self, defaults: list[Any], repo: Any) -> DictConfig:
        cfg = OmegaConf.create()
        for default in defaults:
            layer = super()._compose_config_from_defaults_list([default], repo)
            _start_over(cfg, OmegaConf.to_container(layer, resolve=False))
            cfg.merge_with(layer)
        _start_over(cfg, _as_layer(self.typed))
        return cfg


def _start_over(cfg: DictConfig, layer: Any) -> None:
    """Empties what a layer is to replace."""
    below = mapping(OmegaConf.to_container(cfg, resolve=False)) | {"hydra": None}
    for path in replaced(below, layer):
        *around, name = path
        node = reduce(getitem, around, cfg)
        listed = isinstance(reduce(getitem, around, layer).get(name), list)
        node[name] = None if listed else {}
        if not listed:
            OmegaConf.set_struct(node[name], False)


def _as_layer(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides of values as a layer; each value of a sweep counts as another one."""
    layer: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_delete() or override.package is not None:
            continue
        node = layer
        *around, name = override.key_or_group.split(".")
        for part in around:
            node = found if isinstance(found := node.setdefault(part, {}), dict) else {}
        node[name] = "(a sweep)" if override.is_sweep_override() else override.value()
    return layer


@contextmanager
def layers_start_over() -> Iterator[None]:
    """Hydra composes by `_Loader` within."""
    hydra_main.ConfigLoaderImpl = _Loader
    try:
        yield
    finally:
        hydra_main.ConfigLoaderImpl = ConfigLoaderImpl
