"""Spaces: what they say, and which mistakes are found before any work."""

import optuna
import pytest
import yaml

from optkit.core.errors import UserError
from optkit.launch import launch
from optkit.launch.values import Choice, Span, read_values, stage_of
from optkit.recipe.compose import to_recipe
from optkit.searches.space import bundled_spaces, open_space, space_for


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("interval(0.1, 0.7)", Span(0.1, 0.7)),
        ("tag(log, interval(1e-4, 1e-1))", Span(1e-4, 1e-1, log=True)),
        ("int(interval(1, 8))", Span(1, 8, whole=True)),
        ("range(1, 9, 2)", Span(1, 7, 2, whole=True)),
        ("range(0.1, 0.5, 0.1)", Span(0.1, 0.4, 0.1)),
        ("choice(l2, taylor)", Choice(("l2", "taylor"))),
        ("8, null", Choice(("8", "null"))),
        ("choice([a, b], {c: 1})", Choice(("[a,b]", "{c:1}"))),
    ],
)
def test_values_are_in_hydras_sweep_syntax(text, values):
    assert read_values("key", text) == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.5", "key: '0.5' is one value"),
        ("interval(0.7, 0.1)", "is no interval"),
        ("tag(log, interval(0, 1))", "is no interval"),
        ("tag(lgo, interval(1, 2))", "'lgo' is no tag of it"),
        ("tag(log, range(1, 100))", "'log' is no tag of it"),
        ("range(5, 1)", "is no range of rising numbers"),
        ("choice(1", "is not in Hydra's sweep syntax"),
    ],
)
def test_what_is_no_set_of_values_is_said(text, reason):
    with pytest.raises(UserError, match=reason):
        read_values("key", text)


def test_a_key_knows_its_stage():
    assert stage_of("stages.prune.amount") == stage_of("+stages.prune.protect") == "prune"
    assert stage_of("trainer@stages.train.trainer") == "train"
    assert stage_of("engines.inductor.precision") is None


def compose(*more):
    found = []
    launch("tiny.yaml", more, lambda cfg: found.append(to_recipe(cfg)))
    return found[0]


@pytest.mark.parametrize("file", bundled_spaces().values(), ids=lambda file: file.stem)
def test_the_values_of_the_bundled_spaces_are_in_hydras_syntax(file):
    """A mistake in one would only be said in the log, for a bundled space leaves out what a recipe does not take."""
    for key, text in yaml.safe_load(file.read_text()).items():
        assert (key, text) == ("chain", "subsets") or read_values("a", text).ends


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("l2, null", None, "null"),
        ("l2, null", "l2", "l2"),
        ("l2, null", 4, None),
        ("choice([a, b], [a])", ["a"], "[a]"),
        ("interval(0.1, 0.7)", 0.3, 0.3),
        ("interval(0.1, 0.7)", 0.8, None),
        ("interval(0.1, 0.7)", "l2", None),
        ("interval(0.1, 0.7)", True, None),
        ("int(interval(1, 8))", 3, 3.0),
        ("int(interval(1, 8))", 3.5, None),
        ("range(0.1, 0.5, 0.1)", 0.3, 0.3),
        ("range(0.1, 0.5, 0.1)", 0.35, None),
    ],
)
def test_a_value_is_looked_up_among_those_of_a_key(text, value, found):
    assert read_values("a", text).like(value) == found


@pytest.fixture
def space(home):
    """Opens a space that is given as text."""

    def open_text(text):
        (home / "space.yaml").write_text(text)
        return open_space("space.yaml", compose(), compose)

    return open_text


def test_a_kind_of_stage_stands_for_the_stages_of_the_chain(space):
    found = space("prune/structured.amount: interval(0.2, 0.6)\nquantize/static.observer: choice(minmax, histogram)\n")
    assert found.values == {"stages.prune.amount": Span(0.2, 0.6)}


def test_the_recipe_as_it_is_written_is_among_the_values_as_far_as_the_space_has_them(space):
    recipe = compose("stages.prune.amount=0.4", "stages.prune.criterion=l2")
    amount = "stages.prune.amount: interval(0.2, 0.6)\n"
    both = space("chain: choice([train, prune], [train, prune, recover])\n" + amount)
    chain = f"[{','.join(recipe.chain)}]"
    assert both.written(recipe) == {"chain": chain, "stages.prune.amount": 0.4}
    assert space(amount + "stages.prune.criterion: choice(taylor, fpgm)\n").written(recipe) == {
        "stages.prune.amount": 0.4
    }
    assert space("chain: choice([train, prune])\n" + amount).written(recipe) == {}


def test_a_search_begins_with_the_recipe_and_with_less_and_more_removed(space):
    recipe = compose("stages.prune.amount=0.4", "stages.prune.criterion=l2")
    amount = "stages.prune.amount: interval(0.2, 0.6)\n"
    criterion = "stages.prune.criterion: choice(l2, fpgm)\n"
    assert space(amount + criterion).guesses(recipe) == [
        {"stages.prune.amount": pytest.approx(a), "stages.prune.criterion": "l2"} for a in (0.4, 0.25, 0.35, 0.45, 0.55)
    ]
    assert space(criterion).guesses(recipe) == [{"stages.prune.criterion": "l2"}]
    assert space("chain: choice([train, prune])\n" + amount).guesses(recipe) == []


def test_chains_that_traits_forbid_are_not_proposed(space, caplog):
    caplog.set_level("INFO")
    text = "chain: choice([train, prune], [train, recover, prune], [prune], [train], [train, prunee])\n"
    assert space(text).values["chain"].texts == ("[train,prune]", "[train,recover,prune]")
    assert "[prune] is no chain after train" in caplog.text
    assert "did you mean 'prune'" in caplog.text


def test_subsets_are_all_chains_after_the_baseline(space):
    assert space("chain: subsets\n").values["chain"].texts == (
        "[train,prune]",
        "[train,recover]",
        "[train,prune,recover]",
    )


def test_values_of_a_stage_are_proposed_where_it_is_in_the_chain(space):
    found = space("stages.prune.amount: interval(0.2, 0.6)\nchain: choice([train, recover], [train, prune])\n")
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposed = [found.propose(trials.ask()) for _ in range(8)]
    assert {len(overrides) for overrides in proposed} == {1, 2}
    for first, *rest in proposed:
        assert (first == "chain=[train,prune]") == any(o.startswith("stages.prune.amount=0.") for o in rest)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the space is empty"),
        ("- a\n", "no mapping of keys"),
        ("stages.prune.amount: 0.5\n", "stages.prune.amount: 0.5 is not a text"),
        ("stages.prune.amonut: interval(0.1, 0.5)\n", "did you mean 'amount'"),
        ("stages.prune.amount: interval(0.1, 1.5)\n", "1.5 is not a share"),
        ("stages.prune.criterion: choice(l2, l7)\n", "no criterion 'l7'"),
        ("prune/structured.amonut: interval(0.1, 0.5)\n", "did you mean 'amount'"),
        ("prune/structurd.amount: interval(0.1, 0.5)\n", "did you mean 'prune/structured'"),
        ("stages.train.trainer.lr: interval(0.1, 0.5)\n", "'train' makes the baseline"),
        ("seed: choice(1, 2)\n", "all trials of a search have the same"),
        ("measure.split: choice(test, validation)\n", "all trials of a search have the same"),
        (
            "chain: choice([train, prune])\nstages.recover.alpha: interval(0, 1)\n",
            "no chain of the space has the stage",
        ),
        ("chain: choice([prune])\n", "no chain of the space can work"),
    ],
)
def test_a_mistake_in_a_space_is_one_line(space, text, said):
    with pytest.raises(UserError) as caught:
        space(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_that_is_not_there_is_said(home):
    with pytest.raises(UserError, match="did you mean 'convolutional'"):
        open_space("convolutionl", compose(), compose)
    with pytest.raises(UserError, match="cannot read mine.yaml: No such file"):
        open_space("mine.yaml", compose(), compose)


def test_a_bundled_space_leaves_out_what_the_recipe_does_not_take(home):
    recipe = compose()
    assert space_for(recipe) == "convolutional"
    found = open_space(space_for(recipe), recipe, compose)
    kinds = {f"stages.{stage_of(key)}" for key in found.values if stage_of(key)}
    assert kinds == {"stages.prune", "stages.recover"}


@pytest.mark.parametrize("name", bundled_spaces())
def test_the_keys_of_a_bundled_space_are_kinds_of_stages(name, home):
    recipe = compose()
    assert open_space(name, recipe, lambda *overrides: recipe).values["chain"]
