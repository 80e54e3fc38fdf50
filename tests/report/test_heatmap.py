import pytest

from optkit.prune import Curve, Sensitivity
from optkit.report.heatmap import ROW, cells, heatmap, save_heatmap


def _table(metric="loss", groups=2):
    curves = [Curve(f"layers.{n}.weight", 8, [1, 4], [10, 40], [100, 400], [0.25, 1.5]) for n in range(groups)]
    return Sensitivity("Net", metric, "l2", 0.5, 100, 1000, [*curves, Curve("single.weight", 1, [], [], [], [])])


def test_a_cell_for_each_point_ends_at_the_share_that_was_removed():
    found = cells(_table())
    assert found[:2] == [
        {"group": "layers.0 (8)", "from": 0.0, "to": 12.5, "text": "0.25", "harm": 0.0},
        {"group": "layers.0 (8)", "from": 12.5, "to": 50.0, "text": "1.50", "harm": 1.0},
    ]
    assert [cell["text"] for cell in cells(_table("accuracy"))[:2]] == ["25.0", "150.0"]
    assert [cell["harm"] for cell in cells(_table("accuracy"))[:2]] == [0.25, 0.0]


@pytest.mark.parametrize("groups", [2, 60])
def test_the_picture_has_a_row_for_each_group_and_saves(groups, tmp_path):
    assert heatmap(_table(groups=groups)).to_dict()["height"] == ROW * groups
    save_heatmap(_table(groups=groups), tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text()
    assert text.count(">1.50</text>") == groups
    assert f"layers.{groups - 1} (8)" in text
