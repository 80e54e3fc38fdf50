from pathlib import Path

import pytest
import yaml

from optkit.core.errors import UserError
from optkit.costs.prices import read_prices
from optkit.costs.units import GIGABYTES, SECONDS, quantity

PRICES = Path(__file__).parent / "prices.yaml"


def test_a_list_is_read_in_dollars_gigabytes_and_seconds():
    prices = read_prices(PRICES)
    small, large = prices.instances
    (function,) = prices.functions
    assert (prices.date, prices.making, prices.bytes_in, prices.bytes_out) == ("2026-11-01", 0.36, 0.01, 0.09)
    assert (small.cores, small.price, small.spot, small.speed, small.start_s) == (2, 0.1, 0.04, 1, 0)
    assert small.memory_gb == pytest.approx(4.294967296)
    assert (large.spot, large.speed, large.start_s) == (None, 2, 30)
    assert function.request == pytest.approx(2e-7)
    assert (function.memory_gb, function.keep_warm_s, function.step_s, function.concurrency) == (10.24, 300, 0.001, 1)


def test_a_machine_holds_as_many_replicas_as_cores_and_memory_allow():
    small, large = read_prices(PRICES).instances
    assert [large.replicas(2, 1.0), large.replicas(2, 6.0), large.replicas(1, 6.0), small.replicas(4, 1.0)] == [
        4,
        2,
        2,
        0,
    ]


def test_a_function_is_as_large_as_its_cores_or_its_memory_ask_for():
    (function,) = read_prices(PRICES).functions
    assert function.size(2, 1.0) == pytest.approx(2 * 1.769)
    assert function.size(1, 5.0) == 5.0
    assert function.size(6, 1.0) is None


def test_quantities_have_units():
    assert quantity("50ms", SECONDS, "p99") == pytest.approx(0.05)
    assert quantity(" 1.5 min ", SECONDS, "p99") == 90
    assert quantity("512 MiB", GIGABYTES, "memory") == pytest.approx(0.536870912)


WRONG = {
    "a price without a unit": ("instances.small.price", 0.1, "instances.small.price: 0.1 has no unit (one of USD/hour"),
    "another unit": ("instances.small.price", "0.1 USD/day", "instances.small.price: 'USD/day' is not its unit"),
    "a negative price": ("instances.small.price", "-1 USD/hour", "'-1 USD/hour' is not a quantity"),
    "no number": ("serverless.functions.keep_warm", "long", "'long' is not a quantity"),
    "memory without a unit": ("instances.large.memory", 16, "instances.large.memory: 16 has no unit"),
    "a misspelt key": ("instances.small.pirce", "1 USD/hour", "instances.small.pirce: unknown key (did you mean 'price'?)"),
    "a misspelt part": ("instence", {}, "instence: unknown key (did you mean 'instances'?)"),
    "no speed": ("instances.small.speed", None, "say how the measured speed carries over to it (speed: 1"),
    "a speed of nothing": ("instances.small.speed", 0, "0 is not a number above 0"),
    "no price": ("instances.small.price", None, "instances.small.price: missing (set price)"),
    "no date": ("date", None, "date: missing (set date)"),
    "half a core": ("instances.small.cores", 0.5, "0.5 is not a whole number of at least 1"),
    "a list of instances": ("instances", [1], "[1] is not a mapping"),
    "an instance that is none": ("instances.small", 3, "3 is not a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_list_is_named_with_its_key(case, tmp_path):
    key, value, message = WRONG[case]
    data = yaml.safe_load(PRICES.read_text())
    node = data
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    file = tmp_path / "prices.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError) as error:
        read_prices(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_list_are_named(tmp_path):
    for text, message in (
        ("a: [1", "not YAML in line"),
        ("", "None is not a mapping"),
        ("date: 1", "nothing serverless"),
    ):
        (tmp_path / "prices.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_prices(tmp_path / "prices.yaml")
    with pytest.raises(UserError, match="No such file"):
        read_prices(tmp_path / "none.yaml")
