"""Arguments that cannot be used are refused with what would do."""

import pytest

from optkit.core.checks import check_pattern
from optkit.core.errors import UserError, did_you_mean, first_line

PATHS = [f"layer{number}.conv" for number in range(100)]


def test_a_pattern_gives_the_paths_that_match_once_and_in_order():
    assert check_pattern("protect", "layer?.conv", [*PATHS, *PATHS]) == PATHS[:10]


@pytest.mark.parametrize(
    ("pattern", "fix"),
    [("layr99.conv", r"did you mean 'layer99.conv'\?"), ("*.bn", r"known: layer0.conv, .*, layer44.conv and 60 more")],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, fix):
    with pytest.raises(UserError, match=rf"protect: no layer matches '.*' \({fix}\)"):
        check_pattern("protect", pattern, PATHS, "layer")


@pytest.mark.parametrize(("text", "line"), [("", "OSError"), ("\n  what\nwhere", "what")])
def test_an_error_says_something_in_one_line(text, line):
    assert first_line(OSError(text)) == line


def test_everything_known_is_listed_if_that_is_short():
    assert did_you_mean("x", ["one", "two"]) == "known: one, two"
    assert did_you_mean("x", []) == "none is known"
