"""The jobs of a sweep as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from optkit.core.checks import is_number
from optkit.core.errors import UserError, first_line
from optkit.core.extras import need
from optkit.launch.ray_cluster import connect

log = logging.getLogger(__name__)
PASSED_ON = ("OPTKIT_", "HF_")  # what variables of this process begin with that the jobs see, too


class RayLauncher(Launcher):
    """Starts each job as a Ray task, as many at a time as the cluster has room for.

    The folders of runs and of the sweep must be the same on all of its machines.

    Args:
        address: of the cluster; ``auto`` for the one that this machine is in; None for the one of ``$RAY_ADDRESS``, or
            else one of this machine's own, for the time of the sweep.
        num_cpus, num_gpus: what each job takes.
        memory_gb: what each job takes; None for whatever there is.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        memory_gb: float | None = None,
    ):
        need("ray", "Ray", key="hydra/launcher")
        for key, value in {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory_gb": memory_gb or 0}.items():
            if not is_number(value) or value < 0:
                raise UserError(f"{value!r} is not a number of 0 or more", key=f"hydra.launcher.{key}", value=value)
        self.address = address
        self.takes: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        if memory_gb is not None:
            self.takes["memory"] = int(memory_gb * 1e9)
        self.context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Starts the jobs, and waits for all of them, also if one dies; then its error is raised."""
        import ray
        from ray.exceptions import RayError

        setup_globals()
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        with _cluster(self.address):
            # a job that dies is started again by the sweep, not by Ray: the sweep knows how often
            task: Any = ray.remote(max_retries=0, **self.takes)(_work)
            given = (self.context, self.task_function, self.config, Singleton.get_state(), os.getcwd(), variables)
            shared = [ray.put(one) for one in given]
            jobs = [task.remote(list(o), n, *shared) for n, o in enumerate(job_overrides, initial_job_idx)]
            found, died = [], []
            for job in jobs:
                try:
                    found.append(ray.get(job))
                except RayError as error:
                    died.append(error)
            if died:
                raise died[0]
        return found


def _work(
    overrides: list[str],
    number: int,
    context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    singletons: dict[Any, Any],
    folder: str,
    variables: dict[str, str],
) -> JobReturn:
    """One job, in a process of the cluster: in the folder that the sweep was started in, with its environment."""
    os.environ.update(variables)
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # recipes name code that lies here
    Singleton.set_state(singletons)
    setup_globals()
    of_job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(of_job):
        of_job.hydra.job.id = f"{of_job.hydra.job.name}_{number}"
        of_job.hydra.job.num = number
    return run_job(
        hydra_context=context,
        config=of_job,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """A connection to a cluster, for the time of the block, unless there is one already.

    Raises:
        UserError: there is no cluster at that address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        dashboard = False if address is None else None
        connect(address=address, include_dashboard=dashboard, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        fix = "start one: ray start --head; or leave the address out"
        raise UserError(f"no Ray cluster: {first_line(error)}", key="hydra.launcher.address", fix=fix) from error
    yield
    ray.shutdown()  # after a failure it stays for jobs that are started again; it ends with this process
