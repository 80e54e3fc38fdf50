"""Fronts of several objectives, all of which are to be small: what dominates, in which order, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is nowhere worse than b, and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and list(a) != list(b)


def ranks(points: Sequence[Point]) -> list[int]:
    """How many fronts are to be taken away until a point is on the front itself (non-dominated sorting).

    See Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002. A point on the front has 0.
    """
    found = [0] * len(points)
    left, rank = set(range(len(points))), 0
    while left:
        front = {n for n in left if not any(dominates(points[other], points[n]) for other in left)}
        for n in front:
            found[n] = rank
        left, rank = left - front, rank + 1
    return found


def goes_on(point: Point, others: Sequence[Point], keep: int) -> bool:
    """Whether a point is among the best of those that came as far as it (successive halving).

    One of `keep` goes on, by non-dominated sorting, and whatever has the rank of the last of these: Schmucker et al.,
    "Multi-objective asynchronous successive halving", 2021.

    Args:
        point: the one in question.
        others: those that came as far before.
        keep: of so many one goes on.
    """
    order = ranks([point, *others])
    return order[0] <= sorted(order)[max(len(order) // keep, 1) - 1]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume between the points and a reference that is worse than they are; points beyond it count for nothing.

    By slices along the last objective (While et al., "A faster algorithm for calculating hypervolume", 2006).
    """
    within = {tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))}
    # others add nothing, and with them hundreds of points in four dimensions take hours
    front = [p for p in within if not any(dominates(q, p) for q in within)]
    inside = sorted(front, key=lambda p: p[-1])
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - inside[0][0]
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum(
        (end - p[-1]) * hypervolume([q[:-1] for q in inside[: place + 1]], reference[:-1])
        for place, (p, end) in enumerate(zip(inside, ends, strict=True))
    )


def thinned(points: Sequence[Point], most: int, reference: Point, first: int) -> list[int]:
    """The places of `first` and of those that cover the most volume with it, taken one by one; at most `most`."""
    chosen = [first]
    while len(chosen) < min(most, len(points)):
        left = [n for n in range(len(points)) if n not in chosen]
        chosen.append(max(left, key=lambda n: hypervolume([points[m] for m in [*chosen, n]], reference)))
    return sorted(chosen)
