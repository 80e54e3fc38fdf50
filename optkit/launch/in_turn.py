"""The jobs of a multirun done here, one after the other, without a sweep's folder: for a look at what they are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from optkit.launch.sweeps import launchers, put_files


class InTurn(Launcher):
    """Does the jobs here, one after the other, each with a config of its own."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing: it is made with what it needs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        before, jobs = HydraConfig.instance().cfg, _Configs(self.context, self.config)
        try:
            for overrides in job_overrides:
                self.task_function(jobs.compose(list(overrides)))
        finally:
            HydraConfig.instance().cfg = before
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]


class _Configs:
    """The configs of a sweep's jobs.

    Hydra takes a third of a second for each. Of jobs that differ from the first in plain values of keys that hold plain
    values, the config is that of the first with these values.
    """

    def __init__(self, context: HydraContext, master: DictConfig):
        self.loader, self.master = context.config_loader, master
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.first: tuple[list[str], DictConfig, DictConfig] | None = None

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config of a job, Hydra's own part left out; that is Hydra's current one from here on."""
        if self.first is not None:
            before, own, of_hydra = self.first
            values = _other_values(self.parser, own, before, overrides)
            if values is not None:
                config = own.copy()
                for key, value in values.items():
                    OmegaConf.update(config, key, value, merge=False)
                with read_write(of_hydra.hydra):
                    of_hydra.hydra.overrides.task = overrides
                HydraConfig.instance().cfg = of_hydra  # type: ignore[assignment]
                return config
        composed = self.loader.load_sweep_config(self.master, overrides)
        HydraConfig.instance().set_config(composed)
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        if self.first is None:
            of_now = HydraConfig.instance().cfg
            assert isinstance(of_now, DictConfig)
            self.first = overrides, composed.copy(), of_now
        return composed


def _other_values(
    parser: OverridesParser, config: DictConfig, before: list[str], overrides: list[str]
) -> dict[str, Any] | None:
    """The values that overrides give to keys, where that is all in which they differ from others; None if it is not."""
    if len(before) != len(overrides):
        return None
    found = {}
    for old, new in zip(before, overrides, strict=True):
        if old == new:
            continue
        was, override = parser.parse_overrides([old, new])
        key, value = override.key_or_group, override.value()
        plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        held = OmegaConf.select(config, key, default=None) if plain else None
        same_key = was.key_or_group == key and was.type == override.type
        if not same_key or not all(isinstance(v, (bool, int, float, str)) for v in (value, held, was.value())):
            return None
        if isinstance(value, str) and "${" in value:
            return None
        if key.rpartition(".")[2] in ("_target_", "optimizer", "variant"):  # starts a part over
            return None
        found[key] = value
    return found


@contextmanager
def in_turn() -> Iterator[None]:
    """Within, the jobs of a multirun are done here, and Hydra's own files go into a folder that is removed."""

    def wrapped(config: DictConfig, make: Callable[[], Launcher], **given: Any) -> Launcher:
        put_files(config, Path(folder))
        return InTurn(config=config, **given)

    validate = Sweeper.validate_batch_is_legal
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder, launchers(wrapped):
        Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign] # they are composed once
        try:
            yield
        finally:
            Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]
