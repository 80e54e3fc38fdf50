"""The verdict on chains whose later steps do not pay, on other processors, and on GPUs; records are made up."""

import math
from dataclasses import replace

import pytest

from optkit.core.records import Measurement
from optkit.core.statistics import Estimate, quotient
from optkit.report import rows
from optkit.report.page.summary import _tiles
from optkit.report.page.verdict import verdict
from tests.conftest import make_record
from tests.report.runs import answers, chain, series

AVX2, VNNI = ({"cpu": {"name": "A Processor", "cores": 2, "isa": isa}} for isa in (["avx2"], ["avx2", "avx512_vnni"]))


def _steps(speeds, environment, engine="openvino", batch_size=16):
    """train, prune, recover, quantize, so many times as fast as the baseline on eager (4 ms); the last is int8."""
    stages = (("train", "train"), ("prune", "prune"), ("recover", "distill"), ("quantize", "quantize"))
    found = []
    for step, ((stage, technique), speed) in enumerate(zip(stages, speeds, strict=True)):
        times = series({engine: 4 / speed}, 4.0, step) if step else series({"eager": 4.0, engine: 4 / speed}, None)
        times |= {("baseline", engine): times["baseline", "eager"] / speeds[0]} if step else {}
        record = make_record(
            variant=f"v{step}", parent=f"v{step - 1}" if step else None, step=step, stage=stage, batch_size=batch_size,
            correct=answers(950 if step != 1 else 550), series=times,
        )  # fmt: skip
        here = {"engine": engine, "batch_size": batch_size, "threads": 2}
        share = Measurement("int8_share", 1.0 if technique == "quantize" else 0.0, conditions=here)
        chain_ = [name for name, _ in stages[1 : step + 1]]
        found.append(
            replace(
                record, technique=technique, chain=chain_, environment=environment,
                measurements=[*record.measurements, share],
            )
        )  # fmt: skip
    return found


def test_a_last_step_that_made_it_slower_is_said_with_the_step_to_serve():
    found = rows(_steps([1.1, 1.6, 1.62, 1.25], AVX2))
    # the intervals of AG News through MiniLM on two AVX2 cores
    for step, ci in ((2, [1.58, 1.86]), (3, [1.18, 1.49])):
        next(r for r in found if r["step"] == step).update(speedup_ci=ci)
    judged = verdict(found)
    assert (judged.row["stage"], judged.row["engine"]) == ("recover", "openvino")
    assert judged.sentence.startswith("Serve “recover” on openvino at batch 16: it is 1.62 times [1.58, 1.86] as fast")
    assert (
        "The whole chain (prune, recover, quantize) on openvino at batch 16 is 1.25 times [1.18, 1.49]" in judged.chain
    )
    expected = quotient(Estimate(1.25, 1.18, 1.49), Estimate(1.62, 1.58, 1.86))
    assert expected.high < 1
    assert (
        "int8 does not pay on this processor, which has no int8 dot products: “quantize” is slower than “recover” "
        f"({expected.value:.2f} times [{expected.low:.2f}, {expected.high:.2f}] as fast) on openvino at batch 16."
    ) in judged.chain


def test_a_gain_of_quality_is_said():
    found = rows(_steps([1.1, 1.6, 1.7, 1.65], VNNI))
    better = next(r for r in found if r["step"] == 2)
    better.update(quality_delta=0.02, quality_delta_ci=[0.01, 0.03])
    assert "Its accuracy is better than the baseline's: +2.0 points [+1.0, +3.0]." in verdict(found).sentence
    better.update(quality_delta_ci=[-0.01, 0.05])
    assert "This test cannot tell its change in accuracy of +2.0 points" in verdict(found).sentence


def test_int8_that_pays_is_not_blamed():
    judged = verdict(rows(_steps([1.1, 1.6, 1.62, 4.0], VNNI)))
    assert judged.row["stage"] == "quantize"
    assert "int8" not in judged.chain
    assert judged.chain.startswith("The whole chain (prune, recover, quantize) is 3.6")


def test_int8_that_pays_at_one_batch_size_only():
    small, large = (
        _steps(s, AVX2, "inductor", b) for s, b in (([1.0, 1.5, 1.5, 1.32], 1), ([1.0, 1.5, 1.5, 1.74], 32))
    )
    both = [replace(a, measurements=[*a.measurements, *b.measurements[3:]]) for a, b in zip(small, large, strict=True)]
    judged = verdict(rows(both))
    assert judged.sentence.startswith("Serve “quantize” on inductor at batch 32: it is 1.7")
    assert "At batch 1 serve “recover” on inductor: 1.5" in judged.sentence
    assert (
        "int8 does not pay everywhere on this processor, which has no int8 dot products: “quantize” is slower"
        in judged.chain
    )
    assert judged.chain.count("batch 32") == 0


def test_a_step_that_brings_no_speed_is_named():
    judged = verdict(rows(_steps([1.0, 1.0, 1.0, 2.0], VNNI)))
    assert "The step “1 prune” is not measurably faster than its parent (1.0" in judged.chain
    assert "recover” is not" not in judged.chain  # distillation is not meant to


def test_a_chain_that_loses_accuracy_says_what_it_did():
    start, pruned, *_ = chain()
    judged = verdict(rows([start, pruned]))
    assert judged.sentence.startswith(
        "No technique pays without a measurable loss. Serve the baseline itself on inductor"
    )
    assert judged.chain.startswith("The whole chain (prune) on inductor at batch 8 is 3.0")
    assert "for a change in accuracy of \N{MINUS SIGN}40.0 points" in judged.chain


def test_the_folder_of_the_variant_is_named(tmp_path):
    judged = verdict(rows(chain()), tmp_path)
    assert f"Serve “quantize” ({tmp_path}/variants/3-quantize) on inductor" in judged.sentence


def _on_gpu():
    """The baseline 20 times as fast on cuda as on eager, and a pruned variant 1.5 times as fast as it there."""
    base = make_record(batch_size=8, correct=answers(950), series=series({"eager": 40.0, "cuda": 2.0}, None))
    times = series({"cuda": 4 / 3}, None, 1)
    times |= {("baseline", "eager"): series({"e": 40.0}, None, 2)["variant", "e"]}
    times |= {("baseline", "cuda"): series({"c": 2.0}, None, 3)["variant", "c"]}
    pruned = make_record(
        variant="v1", parent="v0", step=1, stage="prune", batch_size=8, correct=answers(950), series=times
    )
    here = {"engine": "cuda", "batch_size": 8, "threads": 2, "is": "fp16", "device": "NVIDIA H100"}
    return [
        replace(r, technique=t, measurements=[*r.measurements, Measurement("precision", None, conditions=here)])
        for r, t in ((base, "train"), (pruned, "prune"))
    ]


def test_on_a_gpu_the_headline_is_against_the_baseline_there():
    found = rows(_on_gpu())
    judged = verdict(found)
    assert judged.row["device"] == "NVIDIA H100"
    assert judged.sentence.startswith("Serve “prune” on cuda at batch 8: it is 1.5")
    assert "as fast as the baseline on cuda, and 30." in judged.sentence or "and 29." in judged.sentence
    assert "as fast as the baseline on eager, on the processor" in judged.sentence
    run = type("Run", (), {"verdict": judged, "rows": found})
    tile = _tiles(run)[0]
    assert tile["value"].startswith("1.5")
    assert tile["detail"].endswith("against the baseline on cuda")


def test_on_a_gpu_the_engines_own_speed_is_no_technique():
    base, pruned = _on_gpu()
    slower = [
        replace(m, raw=[[2.6 * x for x in call] for call in m.raw], value=2.6 * m.value)
        if m.name == "latency" and m.conditions["of"] == "variant"
        else m
        for m in pruned.measurements
    ]
    judged = verdict(rows([base, replace(pruned, measurements=slower)]))
    assert judged.row["step"] == 0
    assert "20" in judged.sentence
    assert math.isclose(judged.row["speedup"], 20, rel_tol=0.02)


@pytest.mark.parametrize("name", ["eager (reference)", "plain"])
def test_speedups_are_against_what_is_marked_as_the_reference(name):
    # a recipe that calls another engine "eager", twice as fast as the reference
    times = series({"eager": 2.0, name: 4.0}, None)
    record = make_record(batch_size=8, series=times)
    marked = [
        replace(m, conditions=m.conditions | {"reference": True}) if m.conditions.get("engine") == name else m
        for m in record.measurements
    ]
    found = {r["engine"]: r for r in rows([replace(record, measurements=marked)])}
    assert found["eager"]["speedup"] == pytest.approx(2.0, rel=0.02)
    assert (found[name]["speedup"], found[name]["reference"]) == (1.0, name)
