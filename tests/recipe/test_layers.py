"""What a layer of a recipe replaces, on plain mappings."""

import pytest

from optkit.recipe.layers import replaced

OLD = {
    "model": {"_target_": "a.Net", "depth": 20, "config": {"width": 8}},
    "trainer": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
    "losses": {"kd": 1.0},
    "teacher": None,
}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({"model": {"_target_": "b.Net", "width": 8}}, [("model",)]),
        ({"model": {"_target_": "a.Net", "width": 8}}, []),
        ({"model": {"depth": 14}}, []),
        ({"model": {"variant": "DIR"}}, [("model",)]),
        ({"model": {"_target_": "a.Net", "variant": "tiny"}}, []),  # a parameter of the class's own
        ({"trainer": {"optimizer": "adamw"}}, [("trainer", "optimizer_options")]),
        ({"trainer": {"optimizer": "sgd"}}, []),
        ({"trainer": {"optimizer_options": {"momentum": 0.5}}}, []),
        ({"losses": ["a.loss"]}, [("losses",)]),
        ({"teacher": {"variant": "DIR"}}, [("teacher",)]),
        ({"teacher": "DIR"}, []),
        ({"new": {"_target_": "a.Net"}}, []),
    ],
)
def test_what_is_started_over(new, expected):
    assert list(replaced(OLD, new)) == expected


def test_a_variant_gives_way_to_a_class():
    assert list(replaced({"model": {"variant": "DIR"}}, {"model": {"_target_": "a.Net"}})) == [("model",)]
