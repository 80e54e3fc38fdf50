"""Optional packages: which extra of optkit brings them, and the one line that says so where they are not installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from optkit.core.errors import UserError

# the modules that each extra brings; those of an engine are its `packages`. pyproject.toml lists the distributions
EXTRAS = {
    "report": ("altair", "vl_convert", "jinja2"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "slurm": ("submitit",),
    "ray": ("ray",),
    "serve": (
        "aiohttp", "fastapi", "grpc_reflection", "httptools", "prometheus_client", "ray", "starlette", "uvicorn",
        "uvloop",
    ),
    "search": ("optuna",),
    "detection": ("pycocotools",),
    "language": ("compressed_tensors", "gguf", "openvino_genai", "openvino_tokenizers", "peft"),
}  # fmt: skip


def missing(extra: str, modules: Sequence[str] = ()) -> str | None:
    """What of an extra is not installed, with the command that installs it; None when all is there.

    Args:
        extra: one of `EXTRAS`, or another one of pyproject.toml.
        modules: those that are needed, also of another one; all by default.
    """
    absent = [name for name in modules or EXTRAS[extra] if find_spec(name) is None]
    return f"{', '.join(absent)} not installed ({install(extra)})" if absent else None


def need(extra: str, what: str, key: str | None = None, modules: Sequence[str] = ()) -> None:
    """Raises UserError unless an extra is installed.

    Args:
        extra: one of `EXTRAS`.
        what: there is none without it, such as ``page``.
        key: the config key or option that asked for it.
        modules: those of its modules that are needed; all by default.
    """
    if reason := missing(extra, modules):
        raise UserError(f"no {what}: {reason}", key=key)


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "optkit[{extra}]"'
