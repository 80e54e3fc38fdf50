"""Fronts against brute force on small grids."""

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.searches.front import dominates, goes_on, hypervolume, ranks, thinned

SIDE = 4


def grids(dimensions):
    point = st.lists(st.integers(0, SIDE), min_size=dimensions, max_size=dimensions)
    return st.lists(point, max_size=6)


@given(st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(n), grids(n))))
def test_a_volume_is_the_number_of_cells_that_a_point_dominates(case):
    dimensions, points = case
    inside = [p for p in points if max(p) < SIDE]
    cells = product(range(SIDE), repeat=dimensions)
    covered = sum(any(all(x <= c for x, c in zip(p, cell, strict=True)) for p in inside) for cell in cells)
    assert hypervolume(points, [SIDE] * dimensions) == covered


def test_a_point_does_not_dominate_its_equal():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 2), (0, 3))


def test_ranks_count_the_fronts_before_a_point():
    assert ranks([(1, 3), (2, 2), (3, 1), (2, 3), (3, 3)]) == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("point", "others", "answer"),
    [
        ((9, 9), [], True),  # the first one goes on
        ((1, 1), [(2, 2), (3, 3)], True),
        ((2, 2), [(1, 1), (3, 3)], False),
        ((1, 3), [(2, 2), (3, 1)], True),  # all on one front
        ((2, 2), [(1, 1), (3, 3), (4, 4), (5, 5), (6, 6)], True),  # the second of six
    ],
)
def test_one_of_three_goes_on_from_a_rung(point, others, answer):
    assert goes_on(point, others, 3) is answer


def test_of_a_large_front_those_stay_that_cover_the_most():
    points = [(0.0, 3.0), (1.0, 1.0), (3.0, 0.0), (2.9, 0.9)]
    assert thinned(points, 1, (4.0, 4.0), 1) == [1]
    assert thinned(points, 3, (4.0, 4.0), 1) == [0, 1, 2]
    assert thinned(points, 2, (4.0, 4.0), 3) == [1, 3]
    assert thinned(points, 9, (4.0, 4.0), 1) == [0, 1, 2, 3]


def test_the_volume_of_hundreds_of_points_in_four_dimensions_takes_moments():
    """Slices of all points took an hour and more; those of the front are few."""
    random = Random(0)
    points = [[random.random() for _ in range(4)] for _ in range(12)]
    behind = [[x + 1e-3 * (1 + n) for x in points[n % 12]] for n in range(600)]
    assert hypervolume(points + behind, [2.0] * 4) == hypervolume(points, [2.0] * 4)
