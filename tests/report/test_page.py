import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from optkit.core.errors import UserError
from optkit.core.setting import Setting
from optkit.report import rows, write_report
from optkit.report.page import render_page
from optkit.report.page.costs import break_evens
from optkit.report.page.formatting import count, seconds, signed
from optkit.report.page.runs import open_runs, variant_names
from optkit.report.page.steps import changes
from optkit.report.page.verdict import verdict
from optkit.report.written import ACCURACY
from tests.report.runs import HOSTILE, answers, chain, hostile, sensitivity, series, sweep, two_lengths, write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", chain())


class Page(HTMLParser):
    """Elements, and the text of the scripts and of everything else."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.texts, self._in = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag
        if tag == "script":
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._in != "style":
            self.texts.append(data)


def test_the_verdict_is_the_fastest_that_keeps_its_accuracy():
    found = verdict(rows(chain()))
    assert (found.row["stage"], found.row["engine"]) == ("quantize", "inductor")
    assert found.row["speedup"] == pytest.approx(4.0, rel=0.02)
    assert found.sentence.startswith("Serve “quantize” on inductor at batch 8: it is 4.0")
    assert "-" not in found.sentence
    # the pruned one is faster than the baseline, but 40 points worse
    assert all(choice.row is None or choice.row["stage"] != "prune" for choice in found.choices)


def test_a_measured_loss_is_offered_apart():
    records = chain()
    records[3] = replace(records[3], measurements=_with_answers(records[3], 920))
    found = verdict(rows(records))
    assert found.row["stage"] == "recover"
    assert any("For a measured change" in r and "“quantize”" in r for r in found.remarks)
    by_tolerance = {c.tolerance: c.row and c.row["stage"] for c in found.choices}
    assert by_tolerance[0.005] == "train"
    assert by_tolerance[0.05] == "quantize"


def _with_answers(record, right):
    other = make_like(record, right)
    swapped = {str(m.conditions): m for m in other.measurements if m.name == "accuracy"}
    return [swapped.get(str(m.conditions), m) if m.name == "accuracy" else m for m in record.measurements]


def make_like(record, right):
    from tests.conftest import make_record

    return make_record(variant=record.variant, correct=answers(right), series=series({"inductor": 1.0}), batch_size=8)


def test_without_a_technique_that_pays_the_verdict_says_so():
    start, pruned, *_ = chain()
    assert verdict(rows([start, pruned])).sentence.startswith("No technique pays")
    alone = [m for m in start.measurements if m.conditions.get("engine") != "inductor"]
    assert "nothing to compare" in verdict(rows([replace(start, measurements=alone)])).sentence
    slow = [m for m in pruned.measurements if m.conditions.get("engine") != "inductor"]
    both = [replace(start, measurements=alone), replace(pruned, measurements=slow)]
    assert verdict(rows(both)).sentence.startswith("Nothing here is measurably faster")


def test_without_answers_of_the_baseline_on_eager_the_verdict_says_so():
    found = [
        replace(
            r, measurements=[m for m in r.measurements if m.name != "accuracy" or m.conditions["engine"] == "inductor"]
        )
        for r in chain()
    ]
    judged = verdict(rows(found))
    assert judged.row is None
    assert judged.sentence.startswith("No change in accuracy is known")
    assert "“quantize” on inductor at batch 8, is " in judged.sentence


def test_the_steps_multiply_to_the_whole():
    steps = changes(rows(chain()), "inductor", Setting(8))
    assert [s.name for s in steps] == ["train, eager", "inductor engine", "1 prune", "2 recover", "3 quantize"]
    assert math.prod(s.ratio for s in steps) == pytest.approx(steps[-1].row["speedup"])
    assert steps[2].ratio == pytest.approx(1.5, rel=0.02)
    assert steps[2].ratio_ci[0] < steps[2].ratio < steps[2].ratio_ci[1]
    assert steps[3].ratio_ci[0] <= 1 <= steps[3].ratio_ci[1] or abs(steps[3].ratio - 1) < 0.01
    assert sum(s.delta for s in steps) == pytest.approx(steps[-1].row["quality"] - steps[0].row["quality"])
    assert steps[2].delta == pytest.approx(-0.4)


def test_break_even_is_the_stages_time_over_what_each_example_saves():
    found = {(b.row["stage"], b.row["engine"]): b for b in break_evens(rows(chain()))}
    last = found["quantize", "inductor"]
    assert last.cost_s == 2 + 4 + 6
    assert last.saved_s == pytest.approx((2.0 - 1.0) / 8 / 1e3, rel=0.03)
    assert last.examples == pytest.approx(12 / last.saved_s)
    assert last.low <= last.examples <= last.high


def test_what_saves_nothing_never_pays():
    start, *_ = chain()
    times = series({"eager": 8.0, "inductor": 4.0})
    from tests.conftest import make_record

    slower = make_record(
        variant="v1", parent="v0", step=1, stage="slow", batch_size=8, series=times, correct=answers(950)
    )
    found = break_evens(rows([start, slower]))
    assert [b.row["engine"] for b in found] == ["eager", "inductor"]
    assert all(math.isinf(b.examples) for b in found)


def test_the_page_is_one_file_that_asks_for_nothing(folder):
    text = render_page([folder])
    page = Page(text)
    assert len(text) < 6e6
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for kind, script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert kind == "application/json" or f"'sha256-{digest}'" in policy
    assert "unsafe-eval" not in policy


def test_every_chart_has_a_name_a_summary_and_its_table(folder):
    sensitivity().save(folder / "sensitivity.json")
    text = render_page([folder])
    charts = re.findall(r'class="chart" id="([^"]+)" role="img" aria-label="([^"]+)"', text)
    specs = json.loads(next(script for kind, script in Page(text).scripts if kind == "application/json"))
    assert [key for key, _ in charts] == list(specs)
    assert {key.split("-")[0] for key in specs} == {"techniques", "trade", "engines", "layers", "costs"}
    assert all(len(summary) > 30 for _, summary in charts)
    assert text.count("<figure") == len(charts) == text.count("The figures as a table")
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "1.50" in text  # of the sensitivity


def test_a_controls_sensitivity_does_not_take_the_place_of_the_stages_own(tmp_path):
    own, other = sensitivity(), replace(sensitivity(), criterion="random")
    start, pruned, *_ = chain()
    records = [
        start,
        replace(pruned, facts={"sensitivity": own.to_dict()}),
        replace(pruned, variant="c1", control="random_prune", facts={"sensitivity": other.to_dict()}),
    ]
    folder = write_run(tmp_path / "run", records)
    (run,) = open_runs([folder])
    assert {where: table.criterion for where, table in run.sensitivities.items()} == {"before “1 prune”": "l2"}
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "optkit.report.heatmap.save_heatmap", lambda table, file: drawn.update({file.name: table.criterion})
        )
        write_report(folder)
    assert drawn == {"sensitivity-1-prune.svg": "l2"}


def test_a_sweep_has_a_curve_with_a_name_a_summary_and_its_table(tmp_path):
    text = render_page([write_run(tmp_path / "run", sweep())])
    specs = json.loads(next(script for kind, script in Page(text).scripts if kind == "application/json"))
    assert "latency-0-0" in specs
    summary = re.search(r'id="latency-0-0" role="img" aria-label="([^"]+)"', text).group(1)
    assert summary.startswith("Throughput against p50 latency of 7 pairs of variant and engine")
    assert "nothing can be said; p99 not known at batch 1 (200 calls), 8 (200 calls), 32 (200 calls)" in text


def test_lengths_of_texts_are_kept_apart(tmp_path):
    found = rows(two_lengths())
    assert verdict(found).sentence.startswith("Serve “quantize” on inductor at batch 8, 64 tokens: ")
    for tokens, speedup in ((32, 4.0), (64, 5.0)):
        steps = changes(found, "inductor", Setting(8, tokens))
        assert [s.name for s in steps] == ["train, eager", "inductor engine", "1 prune", "2 recover", "3 quantize"]
        assert {s.row["sequence_length"] for s in steps} == {tokens}
        assert math.prod(s.ratio for s in steps) == pytest.approx(speedup, rel=0.02)
    text = render_page([write_run(tmp_path / "run", two_lengths())])
    specs = json.loads(next(script for kind, script in Page(text).scripts if kind == "application/json"))
    values = {(v["row"], v["column"]): v["speedup"] for v in specs["engines-0-0"]["data"]["values"]}
    assert len(values) == 2 * 7
    assert values["3 quantize", "inductor · 8 · 32"] == pytest.approx(4.0, rel=0.02)
    assert values["3 quantize", "inductor · 8 · 64"] == pytest.approx(5.0, rel=0.02)
    assert "Latency, inductor, batch 8, 64 tokens" in text
    assert "Accuracy against latency, batch 8, 32 tokens" in text
    assert "100% of the baseline" in text  # its MACs, of the same length


def test_names_are_data(tmp_path):
    folder = write_run(tmp_path / "run", hostile(chain()), recipe=f"name: {HOSTILE}\n")
    page = Page(render_page([folder]))
    assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
    assert not any(tag == "img" for tag, _ in page.elements)
    shown = "".join(page.texts)
    assert HOSTILE in shown
    assert "49" not in shown.replace("{{7*7}}", "").split("Verdict")[0]


def test_several_runs_stand_side_by_side(tmp_path):
    one, other = write_run(tmp_path / "a/run", chain()), write_run(tmp_path / "b/run", chain())
    text = render_page([one, other])
    assert "Side by side" in text
    assert "a/run" in text
    assert "b/run" in text
    assert "Read with care" not in text
    specs = json.loads(next(script for kind, script in Page(text).scripts if kind == "application/json"))
    runs = {v["run"] for v in specs["trade-off-0-0"]["data"]["values"]}
    assert runs == {"a/run", "b/run"}


def test_runs_of_different_machines_are_named_and_kept_apart(tmp_path):
    other = [replace(r, environment=r.environment | {"cpu": {"name": "Another", "cores": 4}}) for r in chain()]
    text = render_page([write_run(tmp_path / "a", chain()), write_run(tmp_path / "b", other)])
    assert "The runs differ in processor: A Processor, 2 cores; Another, 4 cores." in text
    specs = json.loads(next(script for kind, script in Page(text).scripts if kind == "application/json"))
    for key in ("trade-off-0-0", "trade-off-0-1"):
        assert len({v["run"] for v in specs[key]["data"]["values"]}) == 1


def _effect(accuracy, latency):
    return {
        "quality": {"value": accuracy, "ci": [accuracy - 0.01, accuracy + 0.01]},
        "latency": {"value": latency, "ci": None},
    }


def _ablation():
    effects = [{"technique": "prune", **_effect(-0.02, 0.5)}, {"technique": "quantize", **_effect(0.0, 0.8)}]
    batch = {
        "batch_size": 8, "total": _effect(-0.02, 0.4), "orders": [], "variants": [],
        "attribution": {"method": "shapley", "reason": None, "effects": effects},
        "interactions": [{"techniques": ["prune", "quantize"], **_effect(0.01, 1.1)}],
        "controls": [{
            "control": "random_prune", "stage": "prune", "step": 1, "engine": "eager", "seeds": [0, 1],
            "seeds_without": [], "quality": {"value": 0.031, "ci": [0.02, 0.042]},
        }],
    }  # fmt: skip
    return {"format": 1, "recipe": "the studied", "batches": [batch]}


def test_a_study_shows_its_attribution_once_and_all_its_runs(tmp_path):
    for seed in ("seed-0", "seed-1"):
        write_run(tmp_path / seed, chain())
    (tmp_path / "ablation.json").write_text(json.dumps(_ablation()))
    page = Page(render_page([tmp_path]))
    specs = json.loads(next(script for kind, script in page.scripts if kind == "application/json"))
    assert [key for key in specs if key.startswith("attribution")] == ["attribution-0-0", "attribution-0-1"]
    bars = {v["name"]: v for v in specs["attribution-0-1"]["data"]["values"]}
    assert {name: bar["value"] for name, bar in bars.items()} == {"prune": 2.0, "quantize": 1.25, "whole chain": 2.5}
    shown = "".join(page.texts)
    assert "prune + quantize" in shown
    assert shown.count("prune less random_prune") == 1
    assert "+3.1 [+2.0, +4.2]" in shown
    assert "the studied: 2 runs" in shown
    assert "seed-0" in shown
    assert "seed-1" in shown


def test_something_else_called_an_ablation_is_refused(folder):
    (folder / "ablation.json").write_text("{}")
    with pytest.raises(UserError, match="not what optkit ablate writes"):
        render_page([folder])


def test_variants_of_a_run_that_branches_have_names_of_their_own():
    first, prune, recover, quantize = chain()
    other = replace(quantize, variant="w", parent="v0", step=1, chain=["quantize"])
    longer = replace(quantize, variant="x", parent="v1", step=2, chain=["prune", "quantize"])
    shorter = replace(recover, chain=["prune", "recover"])
    another = replace(quantize, variant="y", parent="w", step=2, stage="recover", chain=["quantize", "recover"])
    control = replace(prune, variant="z", control="random_prune", chain=["prune"])
    records = [first, replace(prune, chain=["prune"]), shorter, other, longer, another, control]
    assert set(variant_names(records).values()) == {
        "0 train", "1 prune", "1 quantize", "2 quantize", "random_prune: 1 prune", "2 prune+recover", "2 quantize+recover",
    }  # fmt: skip
    steps = changes(rows(records), "inductor", Setting(8))
    assert [s.name for s in steps[2:]] == ["1 prune", "2 recover"]
    judged = verdict(rows([first, control]))
    assert judged.row["step"] == 0


def test_an_empty_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no variant yet"):
        render_page([tmp_path])


@pytest.mark.slow
def test_the_command_writes_a_file(command_here, folder, tmp_path):
    assert command_here("report", folder, "--format", "html").stdout == f"{folder}/report.html\n"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    done = command_here("report", folder, "--format", "json", "--output", tmp_path / "r.json")
    assert done.stdout == f"{tmp_path}/r.json\n"
    assert len(json.loads((tmp_path / "r.json").read_text())) == 7
    done = command_here("report", folder, "--format", "md", "--output", tmp_path / "nowhere/r.md")
    assert "cannot write" in str(done.exception)
    done = command_here("report", tmp_path / "typo", "--format", "html")
    assert str(done.exception) == (
        f"no ledger at {tmp_path}/typo (give a run folder, which holds a ledger.jsonl, or a folder of these)"
    )


def test_words():
    assert [signed(ACCURACY, v) for v in (-0.004, 0.0004, -0.0004, 0.01)] == ["\N{MINUS SIGN}0.4", "0.0", "0.0", "+1.0"]
    assert [count(v) for v in (12345, 2.5e6, 3e9, math.inf)] == ["12,345", "2.5 million", "3 billion", "never"]
    assert [seconds(v) for v in (0.25, 20, 600, 36000)] == ["0.25 s", "20 s", "10 min", "10.0 h"]
