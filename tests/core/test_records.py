import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optkit.core.records import pack_values, unpack_values
from optkit.core.variant import variant_id


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_answers_come_back(answers):
    correct = np.array(answers)
    np.testing.assert_array_equal(unpack_values(pack_values(correct)), correct)


def test_a_variant_id_depends_on_every_part_and_not_on_key_order():
    base = variant_id("p", "T", {"a": 1, "b": 2}, 0)
    assert base == variant_id("p", "T", {"b": 2, "a": 1}, 0)
    assert len({base, variant_id("q", "T", {"a": 1, "b": 2}, 0), variant_id("p", "T", {"a": 1, "b": 3}, 0),
                variant_id("p", "T", {"a": 1, "b": 2}, 1), variant_id("p", "U", {"a": 1, "b": 2}, 0)}) == 5  # fmt: skip
