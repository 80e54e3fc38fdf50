import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from optkit.core import ledger
from optkit.core.cache import read_json
from optkit.core.errors import StageError, UserError
from optkit.core.records import unpack_values
from optkit.core.seeds import derive_seed
from optkit.core.stage import Outcome
from optkit.core.statistics import difference_over_seeds
from optkit.distill import Distillation
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.prune import MagnitudePruning, StructuredPruning
from optkit.prune.stages.smaller_dense import SmallerDense
from optkit.recipe.controls import NO_TEACHER, RANDOM_PRUNE, SMALLER_DENSE
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.report import rows
from optkit.report.ablation import ablation_markdown
from optkit.study import ablation
from optkit.study.ablation import RESULT, ablate
from optkit.training import Train, Trainer

FLOAT = frozenset({"float"})


def _train(epochs):
    return Train(Trainer(epochs=epochs, batch_size=64, optimizer="adamw", lr=0.02, schedule="cosine"))


@dataclass
class Halved:
    """Halves the last bias; says which traits it has, and fails if it must."""

    fails_alone: bool = False

    technique: ClassVar[str] = "halve"
    needs: ClassVar[frozenset[str]] = FLOAT
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module, ctx):
        if self.fails_alone and "sparse" not in ctx.variant.traits:
            raise StageError("only after masks")
        list(module.parameters())[-1].data.mul_(0.5)
        return Outcome(module)


class HalvedSparse(Halved):
    """One that needs masks, and says so."""

    needs: ClassVar[frozenset[str]] = frozenset({"sparse"})


@pytest.fixture
def recipe(digits, tmp_path):
    return Recipe(
        name="small",
        model={"_target_": "optkit.models.MLP", "widths": [16], "num_classes": None, "input_shape": None},
        task=digits,
        chain=["train", "mask", "tune", "halve"],
        stages={"train": _train(4), "mask": MagnitudePruning(0.7), "tune": _train(1), "halve": Halved()},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, memory=False),
        threads=1,
        out=str(tmp_path / "runs"),
        text="name: small\n",
    )


@pytest.mark.slow
def test_eight_subsets_train_no_stage_twice_and_their_values_sum_to_the_total(recipe, monkeypatch):
    trained = []
    real = Train.apply
    monkeypatch.setattr(Train, "apply", lambda self, m, ctx: trained.append(ctx.workdir) or real(self, m, ctx))
    done = ablate(recipe)
    counters = done.result["counters"]
    assert counters["chains"] == 8
    # train once, and mask, tune and halve each after every subset of those before it
    assert counters["distinct_stages"] == counters["made_now"] == 1 + 1 + 2 + 4
    assert counters["stages_in_all_chains"] == 8 + 12
    assert len(trained) == len(set(trained)) == 1 + 2
    (batch,) = done.result["batches"]
    effects = batch["attribution"]["effects"]
    assert [e["technique"] for e in effects] == ["mask", "tune", "halve"]
    total = batch["total"]
    assert sum(e["quality"]["value"] for e in effects) == pytest.approx(total["quality"]["value"])
    for cost in ("latency", "size", "nonzeros"):
        # a latency is not given where other work disturbed its timing
        if total[cost] and all(e[cost] for e in effects):
            assert math.prod(e[cost]["value"] for e in effects) == pytest.approx(total[cost]["value"])
    whole = next(v for v in batch["variants"] if len(v["chain"]) == 3)
    first = next(v for v in batch["variants"] if not v["chain"])
    assert whole["quality"]["value"] - first["quality"]["value"] == pytest.approx(total["quality"]["value"])
    assert read_json(done.folder / RESULT) == done.result
    assert "Shapley values" in ablation_markdown(done.result)


@pytest.mark.slow
def test_every_seed_is_planned_once(recipe, monkeypatch):
    planned = []
    monkeypatch.setattr(ablation, "make_plan", lambda one, chains: planned.append(one.seed) or make_plan(one, chains))
    done = ablate(recipe, seeds=2)
    assert planned == done.result["seeds"] == [recipe.seed, recipe.seed + 1]


@pytest.mark.slow
def test_an_interrupted_study_is_continued(recipe, monkeypatch):
    real = Halved.apply
    calls = []

    def third_is_killed(self, module, ctx):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, module, ctx)

    monkeypatch.setattr(Halved, "apply", third_is_killed)
    with pytest.raises(KeyboardInterrupt):
        ablate(recipe)
    again = ablate(recipe)
    counters = again.result["counters"]
    assert 0 < counters["made_now"] < counters["distinct_stages"]
    assert counters["made_now"] + counters["already_there"] == counters["distinct_stages"]
    assert len(calls) == 5
    once_more = ablate(recipe)
    assert once_more.folder == again.folder
    assert once_more.result["counters"]["made_now"] == 0
    assert once_more.result["batches"] == again.result["batches"]


@pytest.mark.slow
def test_seeds_widen_what_is_claimed_and_orders_are_compared(recipe):
    short = replace(recipe, chain=["train", "mask", "halve"])
    done = ablate(short, orders=True, seeds=2)
    (batch,) = done.result["batches"]
    assert done.result["seeds"] == [0, 1]
    assert [o["chain"] for o in batch["orders"]] == [["halve", "mask"]]
    assert [(p["first"], p["then"]) for p in batch["order_pairs"]] == [("halve", "mask")]
    assert all(len(v["variants"]) == 2 for v in batch["variants"])


@pytest.mark.slow
def test_subsets_that_cannot_work_are_named_and_orders_avoid_them(recipe):
    stages = recipe.stages | {"halve": HalvedSparse()}
    done = ablate(replace(recipe, chain=["train", "mask", "halve"], stages=stages))
    (skipped,) = done.result["skipped"]
    assert skipped["chain"] == ["halve"]
    assert "sparse" in skipped["reason"]
    attribution = done.result["batches"][0]["attribution"]
    assert (attribution["orders_averaged"], attribution["orders_possible"]) == (1, 2)
    assert "1 of 2" in attribution["reason"]


@pytest.mark.slow
def test_a_subset_that_fails_at_work_is_named_and_the_rest_goes_on(recipe):
    stages = recipe.stages | {"halve": Halved(fails_alone=True)}
    done = ablate(replace(recipe, chain=["train", "mask", "halve"], stages=stages))
    (skipped,) = done.result["skipped"]
    assert skipped["chain"] == ["halve"]
    assert "only after masks" in skipped["reason"]


@pytest.mark.slow
def test_leaving_one_out_is_said_to_be_that(recipe):
    done = ablate(recipe, subsets="leave-one-out")
    attribution = done.result["batches"][0]["attribution"]
    assert done.result["counters"]["chains"] == 5
    assert (attribution["method"], attribution["sums_to_total"]) == ("leave_one_out", False)
    assert len(attribution["effects"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"engine": "inductr"}, "no engine 'inductr'"), ({"seeds": 0}, "seeds"), ({"subsets": "some"}, "subsets")],
)
def test_a_study_that_cannot_be_is_refused(recipe, options, message):
    with pytest.raises(UserError, match=message):
        ablate(recipe, **options)
    with pytest.raises(UserError, match="no stage comes after the baseline"):
        ablate(replace(recipe, chain=["train"]))


@pytest.mark.slow
def test_a_control_that_fails_is_named_and_the_study_goes_on(recipe, monkeypatch):
    def too_narrow(self, module, ctx):
        raise StageError("too narrow")

    monkeypatch.setattr(SmallerDense, "apply", too_narrow)
    stages = {"train": _train(1), "prune": StructuredPruning(0.5), "tune": _train(1)}
    model = recipe.model | {"widths": [32, 32]}
    done = ablate(replace(recipe, chain=[*stages], stages=stages, model=model, controls=[SMALLER_DENSE]))
    assert all(
        skipped["chain"][0] == SMALLER_DENSE and "too narrow" in skipped["reason"] for skipped in done.result["skipped"]
    )
    assert done.result["skipped"]
    assert len(done.result["batches"][0]["variants"]) == 4


@pytest.mark.slow
def test_controls_are_made_beside_the_subsets_and_judged_once(recipe):
    stages = {"train": _train(2), "prune": StructuredPruning(0.5), "tune": _train(1)}
    model = recipe.model | {"widths": [32, 32]}
    chosen = {"chain": [*stages], "stages": stages, "model": model, "controls": [SMALLER_DENSE, RANDOM_PRUNE]}
    done = ablate(replace(recipe, **chosen))
    counters = done.result["counters"]
    # train, prune, prune + tune, tune; and of the controls narrow + train + tune, prune + tune
    of_subsets, of_controls = 4, 3 + 2
    assert counters["distinct_stages"] == counters["made_now"] == of_subsets + of_controls
    assert counters["stages_in_all_chains"] == 4 + 4 + of_controls
    assert [v["chain"] for v in done.result["batches"][0]["variants"]] == [[], ["prune"], ["tune"], ["prune", "tune"]]
    found = rows(ledger.read(done.folder))
    assert {r["control"] for r in found} == {None, SMALLER_DENSE, RANDOM_PRUNE}
    lines = ablation_markdown(done.result, found).splitlines()
    judged = [line for line in lines if "smaller_dense" in line or "random_prune" in line]
    assert len(judged) == 3
    assert lines.index("Against the controls:") == lines.index(judged[0]) - 2
    assert done.result["batches"][0]["controls"] == []


@pytest.mark.slow
def test_margins_over_controls_are_pooled_over_seeds(recipe, monkeypatch):
    real = SmallerDense.apply

    def too_narrow_once(self, module, ctx):
        if ctx.seed in (derive_seed(0, "stage", place) for place in range(9)):
            raise StageError("too narrow")
        return real(self, module, ctx)

    monkeypatch.setattr(SmallerDense, "apply", too_narrow_once)
    taught = Distillation(trainer=_train(1).trainer)
    stages = {"train": _train(2), "prune": StructuredPruning(0.5), "recover": taught}
    model = recipe.model | {"widths": [32, 32]}
    chosen = {"chain": [*stages], "stages": stages, "model": model, "controls": [SMALLER_DENSE, NO_TEACHER]}
    done = ablate(replace(recipe, **chosen), seeds=3, engine="eager")
    right: dict = {None: [], NO_TEACHER: [], SMALLER_DENSE: []}
    for folder in done.result["runs"]:
        for record in ledger.read(done.folder / folder):
            if record.chain[-1:] == ["recover"] and record.step == 2:
                right[record.control].append(unpack_values(record.find("accuracy").raw))
    right = {control: np.stack(seeds) for control, seeds in right.items()}
    assert {control: len(seeds) for control, seeds in right.items()} == {None: 3, NO_TEACHER: 3, SMALLER_DENSE: 2}
    (batch,) = done.result["batches"]
    found = {entry["control"]: entry for entry in batch["controls"]}
    assert [(e["stage"], e["step"], e["engine"]) for e in found.values()] == [("recover", 2, "eager")] * 2
    for control, seeds in ((NO_TEACHER, [0, 1, 2]), (SMALLER_DENSE, [1, 2])):
        by_hand = difference_over_seeds(right[None][seeds], right[control])
        assert found[control]["quality"] == {"value": by_hand.value, "ci": by_hand.ci}
        assert found[control]["seeds"] == seeds
    assert (found[NO_TEACHER]["seeds_without"], found[SMALLER_DENSE]["seeds_without"]) == ([], [0])
    text = ablation_markdown(done.result, rows(ledger.read(done.folder)))
    judged = [line for line in text.splitlines() if line.startswith("- recover ")]
    assert len(judged) == 2
    (dense,) = [line for line in judged if SMALLER_DENSE in line]
    assert "over seeds 1, 2 and the test examples, on eager at batch 16; without seed 0, " in dense
