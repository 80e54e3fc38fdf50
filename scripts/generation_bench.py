"""optkit's OpenVINO sessions beside OpenVINO GenAI's pipeline on the same model, precision and threads.

    python -m scripts.generation_bench MODEL [--bits 16 8 4] [--prompt 512] [--new 64] [--rounds 21] [--threads 2]

MODEL is a hub id or a Hugging Face folder with its tokenizer. Each round takes a new prompt, for the pipeline keeps
those that it has read, and calls both in turn. Each gives the time to the first token and the median time of each
further one. ``--results FILE`` keeps the figures for the documents. The last line is JSON: per precision both medians
in milliseconds, and theirs over ours with its interval (above 1: ours is faster). ``busy`` is the share of the
machine's processor time that others took meanwhile; above 0.1 the figures are not to be trusted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from optkit.core.environment import environment
from optkit.core.generation import Generator, greedy
from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import OpenVINO
from scripts.results import Results, machine

BUSY = 0.1
Times = tuple[float, list[float]]  # seconds to the first token, and of each further one


def ours(session: Generator, prompt: torch.Tensor, new: int) -> tuple[Times, list[int]]:
    """The times of one prompt, and its tokens."""
    started = time.perf_counter()
    token = greedy(session.start(prompt))
    first = time.perf_counter() - started
    tokens, steps = [int(token)], []
    for _ in range(new):
        started = time.perf_counter()
        token = greedy(session.step(token))
        steps.append(time.perf_counter() - started)
        tokens.append(int(token))
    return (first, steps), tokens


def theirs(pipeline: Any, prompt: torch.Tensor, new: int) -> tuple[Times, list[int]]:
    """The same of GenAI's pipeline, by its own clock."""
    import openvino as ov
    import openvino_genai as genai

    config = genai.GenerationConfig(max_new_tokens=new + 1, ignore_eos=True, do_sample=False)
    ids = prompt.numpy()
    found = pipeline.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), config)
    raw = found.perf_metrics.raw_metrics
    return (raw.m_times_to_first_token[0] / 1e6, [x / 1e6 for x in raw.m_durations]), list(found.tokens[0])


def interleaved(
    calls: dict[str, Callable[[torch.Tensor], tuple[Times, list[int]]]], prompts: torch.Tensor
) -> tuple[dict[str, list[Times]], float]:
    """The times of each round but the first, and the share of tokens that agree."""
    found: dict[str, list[Times]] = {name: [] for name in calls}
    equal = []
    for number, prompt in enumerate(prompts):
        # who comes first changes from round to round
        order = list(calls) if number % 2 else list(reversed(calls))
        tokens = {}
        for name in order:
            times, tokens[name] = calls[name](prompt[None])
            found[name].append(times)
        one, other = (np.array(x) for x in tokens.values())
        equal.append(float((one == other).mean()))
    return {name: times[1:] for name, times in found.items()}, float(np.mean(equal))


def others_share(before: Any, mine_before: Any) -> float:
    """The share of the processors that other processes took since."""
    mine = psutil.Process().cpu_times()
    return share_besides(before, (mine.user + mine.system) - (mine_before.user + mine_before.system))


def share_besides(before: Any, own_s: float) -> float:
    """The share of the processors that others took since, where our processes took so many seconds."""
    now = psutil.cpu_times()
    total = sum(now) - sum(before)
    idle = now.idle - before.idle + getattr(now, "iowait", 0.0) - getattr(before, "iowait", 0.0)
    return max(0.0, (total - idle - own_s) / max(total, 1e-9))


def quantized(module: torch.nn.Module, bits: int) -> torch.nn.Module:
    """int8 weights with a scale an output, int4 in groups of 64; embeddings and head stay as they are."""
    from optkit import quantize_weight_only

    return quantize_weight_only(module, bits=bits).module


def bench(module: torch.nn.Module, tokenizer: Any, args: argparse.Namespace, bits: int) -> dict[str, Any]:
    """One precision."""
    import openvino_genai as genai

    from optkit.deploy.openvino_genai import save_genai

    engine = OpenVINO(cache_precision="fp32")
    traits = frozenset({"float" if bits == 16 else "weight_only"})
    example = (torch.zeros(1, args.prompt, dtype=torch.long),)
    chosen = module if bits == 16 else quantized(module, bits)
    session = engine.compile(chosen, Variant("bench", None, traits, {}), example)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(len(tokenizer) // 2, (args.rounds + 1, args.prompt), generator=generator)
    with tempfile.TemporaryDirectory() as name:
        save_genai(session.model, Path(name), save_tokenizer=tokenizer.save_pretrained)
        # the engine's own options, see optkit/engines/openvino.py
        same = {key: session.compiled.get_property(key) for key in SAME}
        pipeline = genai.LLMPipeline(name, "CPU", **same)
        calls = {
            "optkit": lambda prompt: ours(session, prompt, args.new),
            "genai": lambda prompt: theirs(pipeline, prompt, args.new),
        }
        before, mine = psutil.cpu_times(), psutil.Process().cpu_times()
        times, equal = interleaved(calls, prompts)
        busy = others_share(before, mine)
    found: dict[str, Any] = {"precision": {16: "fp32"}.get(bits, f"int{bits}"), "busy": round(busy, 3)}
    found |= {"quiet": busy <= BUSY, "equal_tokens": round(equal, 4), "weights": session.facts()["weight_precisions"]}
    for place, kind in enumerate(("first", "next")):
        samples = {name: np.array([np.atleast_1d(x[place]) for x in rounds]) for name, rounds in times.items()}
        ratio = ratio_of_medians(samples["genai"], samples["optkit"])
        found[kind] = {f"{name}_ms": round(float(np.median(x)) * 1e3, 2) for name, x in samples.items()}
        found[kind] |= {"ratio": round(ratio.value, 3), "low": round(ratio.low, 3), "high": round(ratio.high, 3)}
    return found


SAME = (
    "INFERENCE_NUM_THREADS",
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "ENABLE_CPU_PINNING",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Both medians and their ratio, for the first token and for each further one."""
    lines = [
        "| precision | first token, ms: optkit | GenAI | ratio | each further one, ms: optkit | GenAI | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["precision"]]
        for kind in ("first", "next"):
            of = row[kind]
            cells += [f"{of['optkit_ms']:.1f}", f"{of['genai_ms']:.1f}"] if row["quiet"] else ["", ""]
            cells.append(f"{of['ratio']:.2f} [{of['low']:.2f}, {of['high']:.2f}]" if row["quiet"] else "left out: busy")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Above 1, optkit is faster; 95% intervals. {rows[0]['machine']}"])


def main() -> None:
    """Prints a line for each precision, and all of it as JSON."""
    from transformers import AutoTokenizer

    from optkit.models import language_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4], choices=[16, 8, 4], help="16 is fp32")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="further tokens")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--results", type=Path, help="a file that keeps the rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module, tokenizer = language_model(args.model), AutoTokenizer.from_pretrained(args.model)
    kept = Results(args.results, {"prompt": args.prompt, "new": args.new, "rounds": args.rounds}, "generation_bench")
    said = machine(environment(args.threads, OpenVINO.packages))
    for bits in args.bits:
        kept.add(bench(module, tokenizer, args, bits) | {"machine": said})
        print(kept.rows[-1], flush=True)
    print(json.dumps(kept.rows))


if __name__ == "__main__":
    main()
