"""A search from its recipe to its front: with figures by formula, and once for real."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import optkit
from optkit.cli import cli
from optkit.core import ledger
from optkit.core.errors import StageError, UserError
from optkit.core.records import Record
from optkit.costs.planned import PlannedCost
from optkit.report import read_rows, render
from optkit.report.rows import rows, with_confidence
from optkit.report.search import search_text
from optkit.searches import trial as trial_module
from optkit.searches.goal import Goal
from optkit.searches.search import _Composer
from optkit.searches.trial import Figures, Look, Workshop, judged
from tests.costs.runs import chain as priced_chain
from tests.costs.runs import folder as priced_run
from tests.costs.test_prices import PRICES
from tests.report.runs import write_run

SERVING = {"traffic": "poisson:rate=2/s,hours=0.2", "prices": str(PRICES), "p99": "60 ms"}
SPACE = "stages.prune.amount: interval(0.1, 0.9)\nstages.recover.alpha: interval(0.1, 1)\n"
METRIC = {"metric": "accuracy", "unit": "1", "metric_kind": "share", "higher_is_better": True}
HARDER = 0.002  # the loss on test, above that on validation


def figures(amount, alpha, split="validation"):
    """Twice as fast with half the work; the loss grows with what is pruned, and is least at an alpha of a half."""
    loss = 0.02 * amount**2 + 0.02 * (alpha - 0.5) ** 2 + (HARDER if split == "test" else 0.0)
    speedup = 1 / (1 - amount)
    return Figures(
        f"tiny-{amount}-{alpha}", ["prune", "recover"], "eager", "batch 16", split, 0.9 - loss, None, loss,
        [loss - 0.01, loss + 0.01], speedup, [speedup - 0.1, speedup + 0.1], {"latency": 1 / speedup}, METRIC, None,
    )  # fmt: skip


def on_two_engines(record):
    """The record, as fast again on inductor."""
    more = [
        replace(
            m,
            value=m.value / 2,
            conditions=m.conditions | {"engine": "inductor"},
            raw=[[t / 2 for t in r] for r in m.raw],
        )
        for m in record.measurements
        if m.name == "latency" and m.conditions["of"] == "variant"
    ]
    quality = [
        replace(m, conditions=m.conditions | {"engine": "inductor"})
        for m in record.measurements
        if m.name == "accuracy"
    ]
    return replace(record, measurements=[*record.measurements, *more, *quality])


class ByFormula(Workshop):
    """Makes nothing."""

    tested: list = []

    def on_validation(self, overrides, before=None, again=False):
        return figures(**self._values(overrides))

    def on_test(self, overrides, number, confidence):
        self.tested.append((number, confidence))
        recipe = self.compose(*self.fixed, *overrides, f"name={self.name}-trial-{number}")
        return recipe, figures(**self._values(overrides), split="test")

    def after_part(self, overrides, share, timed=False):
        found = figures(**self._values(overrides))
        return Look(found.loss / share, found.costs["latency"], 1.0, timed=found if timed else None)

    def _values(self, overrides):
        given = dict(override.split("=") for override in overrides)
        return {
            "amount": float(given.get("stages.prune.amount", 0.5)),
            "alpha": float(given.get("stages.recover.alpha", 0.9)),
        }


@pytest.fixture
def by_formula(home, monkeypatch):
    monkeypatch.setattr(trial_module, "Workshop", ByFormula)
    monkeypatch.setattr(ByFormula, "tested", [])
    (home / "space.yaml").write_text(SPACE)

    def search(**more):
        return optkit.search("tiny.yaml", space="space.yaml", **({"max_drop": 0.5, "trials": 12, "front": 2} | more))

    return search


def test_a_search_finds_a_front_and_says_what_its_choice_flattered(by_formula):
    done = by_formula()
    result = done.result
    assert len(result["trials"]) == 12
    front = result["front"]
    assert front == sorted(front, key=lambda member: member["figures"]["costs"]["latency"])
    assert all(member["figures"]["loss"] <= 0.005 for member in front)
    assert result["winner"] == front[0]["number"]
    assert result["optimism"] == pytest.approx(HARDER)
    # each interval at 1 - 0.05 / n, so that all hold together
    assert ByFormula.tested == [(m["number"], pytest.approx(1 - 0.05 / len(front))) for m in front]
    inside = [t for t in result["trials"] if t["within"]]
    assert not [
        t for t in inside for member in front
        if t["figures"]["loss"] < member["figures"]["loss"]
        and t["figures"]["costs"]["latency"] < member["figures"]["costs"]["latency"]
    ]  # fmt: skip
    assert f"Serve trial {front[0]['number']} (front/tiny-trial-{front[0]['number']}.yaml) on eager" in done.verdict
    assert "0.2 points larger than on validation" in done.verdict
    assert all(file.is_file() for file in done.recipes)
    assert "| trial | engine |" in repr(done)


def test_a_search_begins_with_the_recipe_and_with_less_and_more_removed_and_random_search_does_not(by_formula):
    result = by_formula(control="random").result
    first = [trial["overrides"] for trial in result["trials"][:5]]
    assert first[0] == ["stages.prune.amount=0.5", "stages.recover.alpha=0.9"]
    assert {recover for _, recover in first} == {"stages.recover.alpha=0.9"}
    amounts = [prune for prune, _ in first[1:]]
    assert amounts == sorted(amounts)
    assert len(set(amounts)) == 4
    at_random = [trial["overrides"] for trial in result["control"]]
    assert not [one for one in at_random if one in first]
    assert by_formula(trials=14, control="random").result["trials"][12]["overrides"] not in first


def test_bad_trials_stop_after_a_part_of_their_training(by_formula):
    result = by_formula(trials=20).result
    stopped = [t for t in result["trials"] if t["state"] == "pruned"]
    assert stopped
    for one in stopped:
        assert one["figures"] is None
        before = [t["looks"][len(one["looks"]) - 1] for t in result["trials"] if t["number"] < one["number"] and len(t["looks"]) >= len(one["looks"])]  # fmt: skip
        assert any(loss <= one["looks"][-1][0] and cost <= one["looks"][-1][1] for loss, cost in before)


@pytest.mark.parametrize(
    ("minimize", "known"),
    [(["latency"], [0.1, 0.5]), (["macs"], [0.1, 0.7]), (["size", "energy", "latency"], [0.1, 0.9, 0.5])],
)
def test_a_look_is_judged_by_what_is_minimized(minimize, known):
    goal, timed = Goal(tuple(minimize)), figures(0.5, 0.5)
    assert goal.is_timed == (minimize != ["macs"])
    assert goal.early_point(Look(0.1, 0.7, 0.9), timed if goal.is_timed else None) == known


@pytest.mark.parametrize("front", [1, 2])
def test_the_winner_is_the_cheapest_within_the_limit_however_few_are_measured(by_formula, front):
    result = by_formula(trials=20, front=front).result
    inside = [trial["figures"]["costs"]["latency"] for trial in result["trials"] if trial["within"]]
    assert result["front"][0]["number"] == result["winner"]
    assert result["front"][0]["figures"]["costs"]["latency"] == min(inside)


def test_the_control_of_a_search_by_hours_has_as_many_trials(by_formula):
    result = by_formula(trials=None, hours=1e-3, control="random").result
    assert len(result["control"]) == len(result["trials"]) > 0


def test_the_same_search_goes_on(by_formula):
    first = by_formula(trials=4).result
    more = by_formula(trials=8)
    assert [t["overrides"] for t in more.result["trials"]][:4] == [t["overrides"] for t in first["trials"]]
    assert len(more.result["trials"]) == 8


def test_random_search_is_the_control(by_formula):
    result = by_formula(control="random").result
    assert len(result["control"]) == len(result["trials"]) == 12
    assert set(result["hypervolume"]) == {"search", "random", "written"}
    assert "times the volume of as many random trials" in result["verdict"]


def test_limits_that_no_trial_keeps_say_what_is_the_best_there_is(by_formula, home):
    with pytest.raises(StageError) as caught:
        by_formula(max_drop=0.0, min_speedup=50)
    message = str(caught.value)
    assert "None of" in message
    assert "is 50 times as fast. 12 stopped after a part of their training, because they are too slow" in message
    assert "the fastest of these, trial" in message
    assert "\n" not in message
    (folder,) = (home / "runs/searches").iterdir()
    assert "because they are too slow" in render([folder], "table")
    with pytest.raises(StageError, match=r"None of \d+ trials loses at most 0\.0 points\. The closest, trial"):
        by_formula(max_drop=0.0)


def test_trials_that_are_too_slow_stop_before_their_training_is_done(by_formula):
    found = by_formula(min_speedup=3, max_drop=5, trials=20).result["trials"]
    slow = [trial for trial in found if trial["too_slow"]]
    amounts = {trial["number"]: float(trial["overrides"][0].partition("=")[2]) for trial in found}
    # the speedup's interval reaches 0.1 up, and 10% remain for what training may change
    assert {t["number"] for t in slow} == {n for n, amount in amounts.items() if 1.1 * (1 / (1 - amount) + 0.1) < 3}
    assert slow
    for trial in slow:
        assert trial["too_slow"] == pytest.approx(1 / (1 - amounts[trial["number"]]))
        assert trial["figures"] is None
        assert not trial["looks"]
    assert any(trial["within"] for trial in found)


@pytest.mark.slow
def test_a_look_times_a_variant_in_the_setting_that_counts(home):
    workshop = Workshop(_Composer("tiny.yaml", []), home / "search", "best", ("latency",))
    look = workshop.after_part(["stages.prune.amount=0.6"], 1 / 9, timed=True)
    assert look.timed.setting == "batch 16"
    assert look.timed.costs == {"latency": pytest.approx(1 / look.timed.speedup)}
    assert look.timed.split == "validation"
    assert workshop.after_part(["stages.prune.amount=0.6"], 1 / 9).timed is None


def test_a_limit_is_missed_by_a_share_of_itself():
    goal = Goal(("latency",), max_loss=0.005, min_speedup=4.0)
    found = replace(figures(0.5, 0.5), loss=0.01, speedup=3.0)
    assert goal.misses(found) == pytest.approx({"loss": 0.005, "speedup": 1.0})
    assert goal.distance(found) == pytest.approx(1.0 + 0.25)
    assert goal.distance(replace(found, loss=-1.0, speedup=5.0)) == 0.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_drop": -1}, "--max-drop: -1 is out of range"),
        ({"min_speedup": float("inf")}, "--min-speedup: inf is out of range"),
        ({"minimize": []}, "--minimize: name one cost or more"),
        ({"minimize": ["latency", "latency"]}, "--minimize: name one cost or more, each once"),
        ({"minimize": ["speed"]}, "--minimize"),
        ({"minimize": ["memory"]}, "the recipe does not measure memory"),
        ({"trials": 0}, "--trials"),
        ({"sampler": "grid"}, "--sampler"),
        ({"control": "none"}, "control"),
        ({"sampler": "random", "control": "random"}, "the search is random itself"),
        ({"minimize": ["cost"], "prices": PRICES, "p99": "9 ms"}, "--traffic: dollars need it"),
        ({"p99": "9 ms"}, "--p99: no dollars are minimized"),
        ({"minimize": ["cost"], **SERVING}, "measure.batch_sizes: cost needs batches of 1"),
        ({"minimize": ["cost"], **SERVING, "p99": "9"}, "p99"),
        ({"engine": "openvno"}, "no engine 'openvno' in this recipe"),
        ({"study": "a/b"}, "--study: 'a/b' cannot name a folder"),
        ({"storage": "postgresql+psycopg://me:secret@127.0.0.1:1/x"}, "no study in postgresql"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(by_formula, home, given, said):
    with pytest.raises(UserError) as caught:
        by_formula(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(home.glob("runs/searches/*"))


def test_a_study_of_another_recipe_is_refused(by_formula):
    by_formula(study="mine", trials=1, max_drop=50)
    with pytest.raises(UserError, match=r"the study 'mine' was another one: goal.max_loss was 0\.5 and is 0\.6 "):
        by_formula(study="mine", trials=1, max_drop=60)


def test_the_command_takes_its_own_arguments_from_the_overrides(by_formula):
    arguments = ["search", "tiny.yaml", "space=space.yaml", "seed=1", "--max-drop", "50", "--trials", "1", "--quiet"]
    answer = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    assert answer.output.startswith("Serve trial 0 (front/tiny-trial-0.yaml) on eager")
    assert "The front, on test:" in answer.output
    assert "search folder: runs/searches/tiny-" in answer.output
    wrong = CliRunner().invoke(cli, [*arguments, "--sed"])
    assert "--sed: a search has no such option" in str(wrong.exception)


def test_dollars_are_those_of_the_cheapest_way_to_serve_a_variant(tmp_path):
    run = priced_run(tmp_path / "run-1")
    deployments = optkit.cost(run, *SERVING.values()).deployments
    first, last = (min(d.dollars_a_million for d in deployments if d.step == step) for step in (0, 3))
    found = judged(run, "best", ["cost", "latency"], serving=PlannedCost(**SERVING))
    assert found.costs["cost"] == pytest.approx(last / first)
    assert found.costs["cost"] < 1
    assert found.costs["latency"] == pytest.approx(1 / found.speedup)
    with pytest.raises(StageError, match="no cost of serving: no number of replicas meets it"):
        judged(run, "best", ["cost"], serving=PlannedCost(**SERVING | {"p99": "1 ms"}))


def test_the_cheapest_engine_is_taken_where_dollars_come_first(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run-1", [on_two_engines(record) for record in priced_chain()])
    dollars = {(0, "eager"): 4.0, (3, "eager"): 1.0, (3, "inductor"): 2.0}
    monkeypatch.setattr(trial_module, "_dollars", lambda folder, serving: dollars)
    serving = PlannedCost(**SERVING)
    found = judged(run, "best", ["cost", "latency"], serving=serving)
    assert (found.engine, found.costs["cost"]) == ("eager", 0.25)
    found = judged(run, "best", ["latency", "cost"], serving=serving)
    assert (found.engine, found.costs["cost"]) == ("inductor", 0.5)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A search for real: four trials of a small network on digits, and the recipe's file."""
    from tests.searches.conftest import RECIPE

    home = tmp_path_factory.mktemp("search")
    (home / "tiny.yaml").write_text(RECIPE)
    space = "chain: subsets\nstages.prune.amount: interval(0.2, 0.8)\n"
    (home / "space.yaml").write_text(space)
    return home, optkit.search(home / "tiny.yaml", f"out={home}/runs", space=home / "space.yaml", trials=4)


@pytest.mark.slow
def test_trials_see_validation_only_and_the_front_is_measured_on_test_once(real):
    _, done = real
    trials, front = ledger.read(done.folder / "trials"), ledger.read(done.folder / "front")
    assert {m.conditions["split"] for record in trials for m in record.primary} == {"validation"}
    assert {m.conditions["split"] for record in front for m in record.primary} == {"test"}
    assert len({record.run for record in front}) == len(done.result["front"])
    assert all(record.measured_again == 0 for record in front)
    for member in done.result["front"]:
        assert member["test"]["split"] == "test"
        assert member["figures"]["split"] == "validation"


@pytest.mark.slow
def test_no_stage_is_made_twice(real):
    stages = real[1].result["stages"]
    assert 0 < stages["made"] <= stages["distinct"] < stages["needed"]
    assert stages["made_again"] == 0


@pytest.mark.slow
def test_the_baseline_is_measured_once_for_all_trials(real):
    baselines = [record for record in ledger.read(real[1].folder / "trials") if record.variant == record.baseline]
    assert len(baselines) > 1
    assert all(one.measurements == baselines[0].measurements for one in baselines)


@pytest.mark.slow
def test_a_recipe_of_the_front_runs_as_it_is_with_what_is_made_already(real):
    home, done = real
    run = optkit.run(done.recipes[0], f"out={home}/runs")
    member = done.result["front"][0]
    assert run.folder.parent == home / "runs"
    last = max(run.rows, key=lambda row: row["step"])
    assert last["quality"] == pytest.approx(member["test"]["quality"])
    made = {record.variant for record in ledger.read(done.folder / member["run"])}
    assert {row["variant"] for row in run.rows} == made


@pytest.mark.slow
def test_intervals_get_wider_with_their_confidence(real):
    _, done = real
    folder = done.folder / done.result["front"][0]["run"]
    records: list[Record] = ledger.read(folder)
    row = max(rows(records), key=lambda r: r["step"])
    assert with_confidence(row, records, 0.95)["quality_delta_ci"] == row["quality_delta_ci"]
    low, high = with_confidence(row, records, 0.999)["quality_delta_ci"]
    assert low <= row["quality_delta_ci"][0]
    assert high >= row["quality_delta_ci"][1]
    assert high - low > row["quality_delta_ci"][1] - row["quality_delta_ci"][0]


@pytest.mark.slow
def test_a_report_of_a_search_tells_of_it_and_of_its_front(real):
    _, done = real
    text = render([done.folder], "md")
    assert text.startswith("# Search of tiny")
    assert {row["run"] for row in read_rows([done.folder])} == {
        m["run"].partition("/")[2] for m in done.result["front"]
    }
    page = render([done.folder], "html")
    for words in ("What the search found", "The trials, on validation", "Cheapest so far"):
        assert words in page
    assert json.loads((done.folder / "search.json").read_text()) == done.result


class Untrained(ByFormula):
    """Its chains train nothing: there is no part of a training to look at."""

    timed: list = []

    def on_validation(self, overrides, before=None, again=False):
        found = figures(**self._values(overrides))
        if before is not None:
            before(Look(found.loss, 1.0, 1.0, baseline=0.9))
        self.timed.append((found.run, again))
        return found

    def after_part(self, overrides, share, timed=False):
        return None


def test_a_variant_that_trains_nothing_and_loses_too_much_is_not_timed(by_formula, home, monkeypatch):
    monkeypatch.setattr(trial_module, "Workshop", Untrained)
    monkeypatch.setattr(Untrained, "timed", [])
    monkeypatch.setattr(ByFormula, "tested", [])
    (home / "space.yaml").write_text("stages.prune.amount: interval(0.1, 0.99)\n")
    with pytest.raises(StageError, match=r"stopped before they were timed, because they lose too much; .* loses 1\."):
        by_formula(max_drop=0.1, trials=14)  # 0.001; alpha stays 0.9, which costs 0.0032
    (folder,) = (home / "runs/searches").iterdir()
    result = json.loads((folder / "search.json").read_text())
    lossy = [trial for trial in result["trials"] if trial["too_lossy"] is not None]
    assert lossy
    timed = {run for run, _ in Untrained.timed}
    for trial in result["trials"]:
        found = figures(float(trial["overrides"][0].split("=")[1]), 0.9)
        assert (found.loss > 0.001 + 0.009) == (trial["too_lossy"] is not None) == (found.run not in timed)
        assert trial["too_lossy"] in (None, pytest.approx(found.loss))


class Disturbed(Untrained):
    """The first timing of each variant is disturbed and looks twice as fast."""

    def on_validation(self, overrides, before=None, again=False):
        found = super().on_validation(overrides, before, again)
        if again:
            return found
        return replace(found, speedup=2 * found.speedup, costs={"latency": found.costs["latency"] / 2}, caveat="busy")


def test_timings_of_the_front_that_were_disturbed_are_taken_again(by_formula, home, monkeypatch):
    monkeypatch.setattr(trial_module, "Workshop", Disturbed)
    monkeypatch.setattr(Untrained, "timed", [])
    result = by_formula(max_drop=2, trials=8).result
    assert result["front"]
    for member in result["front"]:
        assert member["figures"]["caveat"] is None
        assert (member["figures"]["run"], True) in Untrained.timed
    assert result["written"]["caveat"] is None


@pytest.mark.parametrize("width", [60, 100])
def test_a_terminal_shows_the_front_and_the_cheapest_trials_within_its_width(by_formula, width):
    done = by_formula(trials=20, max_drop=1.5, control="random")
    text = search_text(done.result, width)
    assert max(map(len, text.splitlines())) <= width
    assert "The front, on test:" in text
    kept = [trial for trial in done.result["trials"] if trial["within"]]
    assert len(kept) > 10
    assert f"The 10 cheapest of {len(kept)} trials, on validation:" in text
    fastest = min(kept, key=lambda trial: trial["figures"]["costs"]["latency"])["overrides"][0].partition("=")[2]
    assert f"amount={fastest}" in text
    assert "20 trials: " in text
    assert "Volume within the limits: search " in text


def test_a_report_of_a_search_without_a_result_says_so(home):
    folder = home / "runs/searches/begun"
    (folder / "looks").mkdir(parents=True)
    (folder / "search.log").write_text("")
    with pytest.raises(UserError, match="this search has no result yet"):
        render([folder], "table")
