"""What the structured pruning engine can cut: every torchvision classifier and the common transformers, one by one.

    python scripts/prune_coverage.py [PATTERN ...] [--suite NAME] [--amount 0.5] [--rows FILE.jsonl] [--deep]

Each model is built with random weights, in a process with limits on its time and memory, and half of its parameters are
cut. The table says, family by family, what was removed, how far the cut model is from the dense one with the same
channels zeroed (relative to the spread of the outputs), whether it runs forward and backward, whether the plan replays
on a fresh instance, and the time and memory of the cut, beyond the model. What Torch-Pruning, if installed, makes of
the same model stands beside, for a cut of the same share of every layer. Times are the smaller of wall and CPU time,
so that others on the machine do not count; 1 thread makes the two alike. Rows go to the file as they come, and the next
call with that file goes on where this one stopped.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib.util
import json
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.prune_cases import SUITES, cases_of, family_of

Row = dict[str, Any]
TIMEOUT = 600  # CPU seconds for one model


def measure(make: Callable[[], nn.Module], inputs: Any, amount: float, deep: bool) -> Row:
    """Prune one model and check the result."""
    from optkit.core.calls import call
    from optkit.core.errors import OptkitError
    from optkit.core.nested import outputs_of
    from optkit.prune import CutPlan, prune_structured
    from optkit.prune.cut.verify import deviation, run

    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # a head of zeros would hide what the rest does
        if not parameter.count_nonzero():
            nn.init.normal_(parameter, std=0.02)
    row: Row = {"dense": sum(p.numel() for p in model.parameters())}
    before, start = _pages(1), _Clock()
    try:
        pruned, plan = (found := prune_structured(model, inputs, amount=amount)).module, found.plan
    except OptkitError as error:
        return row | {"failure": f"{type(error).__name__}: {error}"}
    row["seconds"] = start()
    row["gigabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e9
    row |= {key: 1 - plan.facts[f"{key}_after"] / max(plan.facts[f"{key}_before"], 1) for key in ("params", "macs")}
    row["deviation"] = deviation(model, plan, inputs, run(pruned, inputs).outputs)
    del model
    fresh = CutPlan.from_json(plan.to_json()).apply(make()).eval()
    fresh.load_state_dict(pruned.state_dict())
    outputs, again = outputs_of(call(pruned, inputs)), outputs_of(call(fresh, inputs))
    row["replays"] = type(fresh) is type(pruned) and all(map(torch.equal, again, outputs))
    del fresh, again
    torch.autograd.backward([t.float().sum() for t in outputs if t.requires_grad])
    row["trains"] = all(t.isfinite().all() for t in outputs) and any(p.grad is not None for p in pruned.parameters())
    if deep:
        _return_no_cache(pruned)
        outputs = outputs_of(call(pruned, inputs))
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        torch.export.export(pruned, args, kwargs, strict=False)
        compiled = outputs_of(call(torch.compile(copy.deepcopy(pruned), backend="aot_eager"), inputs))
        row["compiles"] = all(torch.allclose(a, b, atol=1e-3) for a, b in zip(compiled, outputs, strict=True))
    return row


def measure_torch_pruning(make: Callable[[], nn.Module], inputs: Any, amount: float) -> Row:
    """The same model cut by Torch-Pruning: equal shares of every layer, heads left alone."""
    import torch_pruning as tp

    model = make().eval()
    _return_no_cache(model)
    before = sum(p.numel() for p in model.parameters())
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in (2, 10, 1000)]
    start = _Clock()
    tp.pruner.MagnitudePruner(
        model,
        inputs,
        tp.importance.MagnitudeImportance(),
        pruning_ratio=1 - (1 - amount) ** 0.5,
        ignored_layers=heads,
    ).step()
    seconds = start()
    with torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return {"seconds": seconds, "params": 1 - sum(p.numel() for p in model.parameters()) / before}


def _return_no_cache(model: nn.Module) -> None:
    """Language models return their keys and values too, which neither torch.export nor Torch-Pruning takes."""
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False


class _Clock:
    """Seconds since it was made, of the wall or of this process, whichever is less."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> float:
        return min(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def _pages(field: int) -> int:
    """Bytes of this process: its address space (0) or what is in memory (1)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field]) * resource.getpagesize()


def in_own_process(run: Callable[..., Row], limit: int, memory: float, *args: Any) -> Row:
    """What ``run(*args)`` returns, or why it does not: it may take ``limit`` s of CPU and ``memory`` GB."""
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would import for longer than most cuts take
    receiver, sender = fork.Pipe(duplex=False)

    def work() -> None:
        most = _pages(0) + int(memory * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        try:
            sender.send(run(*args))
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is the result here
            sender.send({"failure": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"})

    process = fork.Process(target=work)
    process.start()
    process.join()
    if receiver.poll():
        return receiver.recv()
    return {"failure": f"not done after {limit} s" if process.exitcode == -signal.SIGXCPU else "killed"}


def failing(row: Row) -> str:
    """What a row falls short in, or nothing: the limits on time and memory are for models up to 100M parameters."""
    if "failure" in row:
        return row["failure"]
    held = {
        "share": 0.45 <= row["params"] <= 0.55,
        "deviation": row["deviation"] <= 1e-4,
        **{key: row.get(key, True) for key in ("trains", "replays", "compiles")},
        "5 s": row["dense"] > 100e6 or row["seconds"] < 5,
        "4 GB": row["dense"] > 100e6 or row["gigabytes"] < 4,
    }
    return ", ".join(name for name, fine in held.items() if not fine)


def line(row: Row) -> str:
    """One line of the table."""
    cells = [row["model"], f"{row.get('dense', 0) / 1e6:.1f}"]
    if "failure" in row:
        cells += [f"FAILS: {row['failure']}", *[""] * 6]
    else:
        cells += [f"{row['params']:.1%}", f"{row['macs']:.1%}", f"{row['deviation']:.0e}"]
        cells += ["yes" if row[key] else "NO" for key in ("trains", "replays")]
        cells += [f"{row['seconds']:.1f}", f"{row['gigabytes']:.1f}"]
    other = row["torch_pruning"]
    cells.append(other.get("failure") or f"{other['seconds']:.1f} s, {other['params']:.0%}" if other else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, family by family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--suite", choices=SUITES, help="one suite instead of all")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--rows", type=Path, help="append rows to this file, and skip what it holds")
    parser.add_argument("--memory", type=float, default=16, help="GB that a process may take")
    parser.add_argument("--beside", type=int, default=60, help="CPU seconds for Torch-Pruning on each, 0 for none")
    parser.add_argument("--deep", action="store_true", help="torch.export and torch.compile the pruned model too")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    text = args.rows.read_text(encoding="utf-8") if args.rows and args.rows.exists() else ""
    held = [json.loads(found) for found in text.splitlines() if found.endswith("}")]
    rows = {(row["suite"], row["model"]): row for row in held if row["amount"] == args.amount}
    beside = args.beside if importlib.util.find_spec("torch_pruning") else 0
    shown, family = [], ""
    for suite in [args.suite] if args.suite else SUITES:
        cases = cases_of(suite)
        named = [n for n in cases if any(fnmatch.fnmatch(n, pattern) for pattern in args.patterns)]
        for name in sorted(named, key=lambda n: family_of(suite, n)):
            if (suite, name) not in rows:
                case = (*cases[name], args.amount)
                row = {"suite": suite, "model": name, "amount": args.amount}
                row |= in_own_process(measure, TIMEOUT, args.memory, *case, args.deep)
                row["torch_pruning"] = (
                    in_own_process(measure_torch_pruning, beside, args.memory, *case) if beside else None
                )
                rows[suite, name] = row
                if args.rows:
                    with args.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            if family_of(suite, name) != family:
                family = family_of(suite, name)
                print(
                    f"\n**{family}** ({suite})\n\n| model | M params | params cut | MACs cut | deviation | trains ",
                    end="",
                )
                print("| replays | s | GB | Torch-Pruning |\n" + "|---" * 10 + "|")
            shown.append(rows[suite, name])
            print(line(shown[-1]), flush=True)
    short = {row["model"]: failing(row) for row in shown if failing(row)}
    print(
        f"\n{len(shown) - len(short)} of {len(shown)} hold everything.",
        *(f"\n- {n}: {why}" for n, why in short.items()),
    )


if __name__ == "__main__":
    main()
