"""A causal language model, quantized, cut and recovered in every way of the documents' table, in one run.

    python -m scripts.language_results MODEL TEXTS --test FILE --results FILE [OVERRIDE ...]

MODEL is a hub id or a Hugging Face folder, TEXTS what is trained, calibrated and chosen on, FILE what is measured on.
The run is the recipe ``smollm2_wikitext2`` with further chains of the same baseline: weights of 8, 4 and 3 bits,
rounded to the nearest and by data; half of the weights masked, by magnitude, Wanda and SparseGPT; depth and width
alone, at random, and recovered; and the whole chain without a teacher. ``--chains`` names some of the further chains.
OVERRIDEs are the recipe's. The rows are written to the results file when the run is complete; the same command goes on
with an incomplete run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.results import Results, machine

INT4 = {"bits": 4, "embeddings": "true", "head": "true", "vocabulary_bits": 8}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("quantize/weight_only", {"embeddings": "true", "head": "true"}),
    "int4": ("quantize/weight_only", INT4),
    "int4_gptq": ("quantize/weight_only", INT4 | {"rounding": "gptq"}),
    "int4_awq": ("quantize/weight_only", INT4 | {"rounding": "awq"}),
    "int4_gptq_awq": ("quantize/weight_only", INT4 | {"rounding": "gptq+awq"}),
    "int3": ("quantize/weight_only", {"bits": 3}),
    "int3_gptq": ("quantize/weight_only", {"bits": 3, "rounding": "gptq"}),
    "magnitude": ("prune/magnitude", {"amount": 0.5, "scope": "local", "protect": '["*lm_head"]'}),
    "wanda": ("prune/magnitude", {"amount": 0.5, "criterion": "wanda"}),
    "sparsegpt": ("prune/magnitude", {"amount": 0.5, "criterion": "sparsegpt"}),
    "random_depth": ("prune/depth", {"amount": 0.2, "by": "random"}),
    "random_width": (
        "prune/structured",
        {"amount": 0.25, "parts": "[feed_forward]", "uniform": "true", "criterion": "random", "round_to": 64},
    ),
}
CHAINS = [
    *(["int8"], ["int4"], ["int4_gptq"], ["int4_awq"], ["int4_gptq_awq"], ["int3"], ["int3_gptq"]),
    *(["magnitude"], ["wanda"], ["sparsegpt"]),
    *(["width"], ["random_depth"], ["random_width"]),
    *(["depth", "recover"], ["width", "recover"]),
]
KEPT = (
    "chain", "control", "engine", "workload", "quality", "quality_ci", "quality_delta", "quality_delta_ci", "size_mb",
    "throughput", "latency_p50_ms", "speedup", "speedup_ci", "caveat", "examples", "machine", "step",
)  # fmt: skip


def overrides(args: argparse.Namespace) -> list[str]:
    """The recipe's stages, and those of the other chains."""
    found = [f"model.pretrained={args.model}", "task.dataset=null", "task.subset=null", "controls=[no_teacher]"]
    found += [f"task.train={args.texts}", f"task.validation={args.texts}", f"task.test={args.test}"]
    for name, (group, options) in STAGES.items():
        found.append(f"+stage@stages.{name}={group}")
        found += [f"stages.{name}.{key}={value}" for key, value in options.items()]
    return found + args.overrides


def further_chains(names: str | None) -> list[list[str]]:
    """The chains that ``--chains`` names, as ``depth+recover,int8``; all of them without it.

    Raises:
        SystemExit: a chain is not known.
    """
    known = {"+".join(chain): chain for chain in CHAINS}
    if names is None:
        return CHAINS
    for name in names.split(","):
        if name not in known:
            raise SystemExit(f"--chains: {name!r} is not a chain; give some of {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def run_all(cfg: Any, chains: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Runs what is left, and gives the rows."""
    import torch

    from optkit.core.environment import environment
    from optkit.pipeline import run
    from optkit.recipe.compose import to_recipe
    from optkit.recipe.plan import make_plan
    from optkit.report import read_rows, write_report

    done = run(make_plan(to_recipe(cfg), chains))
    write_report(done.folder)
    said = machine(environment(torch.get_num_threads(), ("openvino",)))
    for chain, reason in done.failed.items():
        print("failed:", "+".join(chain), reason)
    return [row | {"machine": said} for row in read_rows([done.folder])]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexity with its paired interval, size, and the speed of reading and generating against eager."""
    lines = [
        "| variant | perplexity | against fp32 | size MB | prefill | decode | tokens/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    by_variant: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = " + ".join(row["chain"]) or "fp32"
        name += f" ({row['control']})" if row["control"] else ""
        by_variant.setdefault((name, row["engine"]), {})[row["workload"]] = row
    for (name, engine), of in by_variant.items():
        any_row = next(iter(of.values()))
        delta, low, high = any_row["quality_delta"], *(any_row["quality_delta_ci"] or (None, None))
        against = "" if not any_row["step"] or delta is None else f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]"
        speeds = [_speed(of.get(workload)) for workload in ("prefill", "decode")]
        tokens = f"{of['decode']['throughput']:.1f}" if "decode" in of and not of["decode"]["caveat"] else "left out"
        cells = [
            f"{name}, {engine}",
            f"{any_row['quality']:.2f}",
            against,
            f"{any_row['size_mb']:.1f}",
            *speeds,
            tokens,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", str(rows[0]["machine"])])


def _speed(row: dict[str, Any] | None) -> str:
    if row is None or row["speedup"] is None or row["caveat"]:
        return "left out"
    low, high = row["speedup_ci"]
    return f"{row['speedup']:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Runs what is left of the run, and prints the table."""
    from optkit.core.logs import Messages
    from optkit.launch import launch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--test", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--chains", help="some of the further chains, as int8,depth+recover; all by default")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    chains = further_chains(args.chains)
    Messages().begin()
    found: list[dict[str, Any]] = []
    launch("smollm2_wikitext2", overrides(args), lambda cfg: found.extend(run_all(cfg, chains)))
    args.results.unlink(missing_ok=True)
    results = Results(args.results, {"model": Path(args.model).name}, "language_results")
    for row in found:
        results.add({key: row.get(key) for key in KEPT})
    print(table(results.rows))


if __name__ == "__main__":
    main()
