import pytest

from optkit import cost
from scripts.cost_results import rows_of, table
from tests.costs.runs import folder
from tests.costs.test_prices import PRICES


def test_a_row_has_the_chain_beside_its_baseline_and_the_shares_add_up(tmp_path):
    costs = cost(folder(tmp_path / "run"), "poisson:rate=20/s,hours=0.2", PRICES, "60 ms")
    rows = {row["policy"]: row for row in rows_of(costs)}
    assert list(rows) == ["fixed", "autoscaled", "serverless"]
    row = rows["serverless"]
    assert sum(row["shares"].values()) == pytest.approx(row["chain"][0] - row["baseline"][0])
    head, _, *body = table(list(rows.values())).splitlines()
    assert "| prune, % | recover, % | quantize, % |" in head
    assert body[0].startswith("| r | fixed |")
    assert body[0].endswith("| +0.0 | +0.0 | +0.0 | never | never |")
