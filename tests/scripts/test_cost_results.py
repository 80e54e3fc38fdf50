import pytest

from optkit import cost
from optkit.report import read_rows
from scripts.cost_results import rows_of, table
from tests.costs.runs import folder
from tests.costs.test_prices import PRICES


def test_a_row_has_the_chain_beside_its_baseline_and_the_shares_add_up(tmp_path):
    run = folder(tmp_path / "run")
    costs = cost(run, "poisson:rate=20/s,hours=0.2", PRICES, "60 ms")
    rows = {row["policy"]: row | {"machine": "m"} for row in rows_of(costs, read_rows([run]))}
    assert list(rows) == ["fixed", "autoscaled", "serverless"]
    row = rows["serverless"]
    assert sum(row["shares"].values()) == pytest.approx(row["chain"][0] - row["baseline"][0])
    head, _, *body, _, engines = table(list(rows.values())).splitlines()
    assert engines.startswith("Engines (m) r: ")
    assert row["day"] == pytest.approx(20 * 86400, rel=0.05)
    assert "| prune, % | recover, % | quantize, % |" in head
    assert body[0].startswith("| r (")
    assert " points) | 1.7" in body[0]
    assert "million | fixed |" in body[0]
    assert body[0].endswith("| +0.0 | +0.0 | +0.0 | never | never |")
