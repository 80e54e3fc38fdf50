"""The label algebra against brute force, on small cases."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optkit.prune.cut.plan import from_ranges, to_ranges
from optkit.prune.trace.labels import LabelSpace


def classes_of(space, labels):
    return space.resolve().classes[labels].tolist()


def test_ties_and_freezing():
    space = LabelSpace()
    a, b, c = space.fresh(3), space.fresh(3), space.fresh(2)
    space.tie(a, b)
    space.tie(c, b[:2])
    space.freeze(c[:1], "because")
    found = space.resolve().classes
    assert found[a[0]] == found[b[0]] == found[c[0]] == 0
    assert found[a[1]] == found[b[1]] == found[c[1]] != 0
    assert found[a[2]] == found[b[2]] not in (0, found[a[1]])


def test_tie_with_a_fixed_dimension_freezes():
    space = LabelSpace()
    a = space.fresh(3)
    assert space.tie(a, None) is None
    assert classes_of(space, a) == [0, 0, 0]


def test_a_tie_of_unequal_sizes_is_refused():
    space = LabelSpace()
    with pytest.raises(ValueError, match="3 labels meet 2"):
        space.tie(space.fresh(3), space.fresh(2))


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_split_is_cut_along_the_axis_that_is_free(fixed):
    space = LabelSpace()
    channels = space.fresh(6)
    axes = space.split(channels, (2, 3))
    space.freeze(axes[fixed], "")
    grid = space.resolve().classes[channels].reshape(2, 3)
    expected = (3, 2)[fixed]
    assert len(np.unique(grid)) == expected
    assert (grid == grid.take([0], axis=fixed)).all()


def test_a_split_with_two_free_axes_takes_the_finer_unless_told_otherwise():
    space = LabelSpace()
    plain, told = space.fresh(12), space.fresh(12)
    space.split(plain, (3, 4))
    space.avoid(space.split(told, (3, 4))[1])
    assert len(np.unique(classes_of(space, plain))) == 4
    assert len(np.unique(classes_of(space, told))) == 3


def test_merging_undoes_splitting():
    space = LabelSpace()
    channels = space.fresh(12)
    axes = space.split(channels, (3, 4))
    assert (space.merge(axes, (3, 4)) == channels).all()
    swapped = space.merge(axes[::-1], (4, 3)).reshape(4, 3)
    again = space.split(swapped.ravel(), (4, 3))
    assert (again[0] == axes[1]).all()
    assert (again[1] == axes[0]).all()


def test_merging_with_fixed_dimensions_repeats():
    space = LabelSpace()
    channels = space.fresh(2)
    assert (space.merge([channels, None], (2, 3)) == np.repeat(channels, 3)).all()
    assert (space.merge([None, channels], (3, 2)) == np.tile(channels, 3)).all()
    split = space.split(np.repeat(channels, 3), (2, 3))
    assert (split[0] == channels).all()
    assert split[1] is None


def test_frozen_elements_of_a_product_freeze_their_slices():
    space = LabelSpace()
    channels = space.fresh(12)
    space.split(channels, (3, 4))
    space.freeze(channels[:1], "")
    grid = np.array(classes_of(space, channels)).reshape(3, 4)
    assert (grid[:, 0] == 0).all()
    assert len(np.unique(grid)) == 4


@given(st.sets(st.integers(0, 60)))
def test_ranges_round_trip(kept):
    indices = np.array(sorted(kept), np.int64)
    assert torch.equal(from_ranges(to_ranges(indices)), torch.from_numpy(indices))


def test_ranges_are_short():
    assert to_ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"
