"""Which rows may lend to a row follows from the row, the scan and the choice, and from nothing seen on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plan_patterns import outer_product
from bluesky.plans import count, grid_scan, list_grid_scan, scan, spiral_square
from hypothesis import given, settings
from hypothesis import strategies as st
from ophyd.sim import det, motor1, motor2, motor3

from bluesky_symdenoise.physics.neighbours.window import Borrow, Lender, Scan

grids = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=3).map(
    lambda axes: (tuple(size for size, _ in axes), (False, *(snakes for _, snakes in axes[1:])))
)


def points(shape: tuple[int, ...], snaking: tuple[bool, ...]) -> list[tuple[int, ...]]:
    """Return the index of each point as Bluesky's own plans visit them."""
    motors = [motor1, motor2, motor3][: len(shape)]
    args: list[Any] = []
    for motor, size, snakes in zip(motors, shape, snaking, strict=True):
        args += [motor, 0, size - 1, size, *([] if motor is motor1 else [snakes])]
    return [tuple(round(point[motor]) for motor in motors) for point in outer_product(args)]


def brute(borrow: Borrow, row: int, number: int, where: list[tuple[int, ...]], repeats: int) -> list[Lender]:
    """Return the lenders of a row of a grid, found among all rows."""
    own = where[row // repeats]
    found = []
    for each in range(min(number, len(where) * repeats)):
        offset = tuple(float(a - b) for a, b in zip(where[each // repeats], own, strict=True))
        found.append((math.hypot(*offset), each, offset))
    found.sort()
    before = [each for each in found if each[1] < row][: borrow.reach]
    after = [each for each in found if each[1] > row][: borrow.reach] if borrow.side == "both" else []
    return [Lender(each, offset) for _, each, offset in sorted(before + after)]


@settings(max_examples=150, deadline=None)
@given(grids, st.integers(1, 3), st.integers(1, 9), st.sampled_from(["past", "both"]), st.data())
def test_rows_of_a_grid_are_the_nearest_that_bluesky_visits(
    grid: tuple[tuple[int, ...], tuple[bool, ...]], repeats: int, reach: int, side: str, data: Any
) -> None:
    """Each row within the window, also of a run that was aborted, as in a search among all of them."""
    where, made = points(*grid), Scan(*grid, repeats)
    assert [made.point(number) for number in range(len(where))] == where
    assert [made.number(point) for point in where] == list(range(len(where)))
    number = data.draw(st.integers(1, made.rows))
    row = data.draw(st.integers(0, number - 1))
    borrow = Borrow(side, reach)
    lenders = borrow.rows(row, number, made)
    assert list(lenders) == brute(borrow, row, number, where, repeats)
    assert all(abs(each.row - row) <= borrow.span(made) for each in lenders)
    assert row not in {each.row for each in lenders}


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.none(), grids), st.integers(1, 9), st.integers(0, 60), st.integers(1, 30))
def test_past_is_what_both_has_before_and_needs_no_end(grid: Any, reach: int, row: int, more: int) -> None:
    made = None if grid is None else Scan(*grid)
    past = Borrow("past", reach).rows(row, None, made)
    both = Borrow("both", reach).rows(row, row + more, made)
    assert past == tuple(each for each in both if each.row < row)
    assert past == Borrow("past", reach).rows(row, row + more, made) == Borrow("both", reach).rows(row, None, made)


@settings(max_examples=100, deadline=None)
@given(grids, st.integers(1, 9), st.data())
def test_a_window_that_has_come_is_not_changed_by_later_rows(grid: Any, reach: int, data: Any) -> None:
    """A row can be denoised as soon as the last of its window has come: the end of the run needs not be known."""
    made, borrow = Scan(*grid), Borrow("both", reach)
    row = data.draw(st.integers(0, made.rows + 9))
    endless = borrow.rows(row, 2**53, made)
    last = max([row, *(each.row for each in endless)])
    for number in (last + 1, last + 5, made.rows + 30):
        assert borrow.rows(row, max(number, last + 1), made) == endless


def test_without_a_grid_rows_go_by_number() -> None:
    assert Borrow("both", 2).rows(5, 7) == (Lender(4, (-1.0,)), Lender(6, (1.0,)), Lender(3, (-2.0,)))
    assert Borrow("past", 8).rows(0) == ()


def test_a_snake_finds_the_point_above_up_to_199_rows_ago() -> None:
    snake = Scan((50, 100), (False, True))
    near = {each.row: each.offset for each in Borrow("past", 8).rows(300, None, snake)}
    assert near[299] == (-1.0, 0.0)
    assert Borrow("past", 2).rows(399, None, snake) == (Lender(200, (-1.0, 0.0)), Lender(398, (0.0, 1.0)))
    plain = Scan((50, 100), (False, False))
    assert Lender(200, (-1.0, 0.0)) in Borrow("past", 2).rows(300, None, plain)


def test_plain_and_snaking_grids_have_the_same_lenders_at_the_same_points() -> None:
    plain, snake, borrow = Scan((6, 7), (False, False)), Scan((6, 7), (False, True)), Borrow("both", 41)
    for point in [(0, 0), (3, 3), (4, 6), (5, 0)]:
        offsets = [{each.offset for each in borrow.rows(grid.number(point), 42, grid)} for grid in (plain, snake)]
        assert offsets[0] == offsets[1]


def test_repeats_of_a_point_share_first() -> None:
    grid = Scan((2, 3), (False, False), repeats=2)
    lenders = Borrow("both", 2).rows(3, 12, grid)
    assert lenders[0] == Lender(2, (0.0, 0.0))
    assert [each.row for each in lenders] == [2, 0, 4, 5] or lenders[1].offset != (0.0, 0.0)


def test_rows_after_the_last_point_go_by_number_and_lend_to_no_point() -> None:
    grid, borrow = Scan((2, 3), (False, False)), Borrow("both", 3)
    assert borrow.rows(7, 9, grid) == (
        Lender(6, (-1.0,)),
        Lender(8, (1.0,)),
        Lender(5, (-2.0,)),
        Lender(4, (-3.0,)),
    )
    assert all(each.row < 6 for each in borrow.rows(5, 9, grid))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (lambda: grid_scan([det], motor1, 0, 1, 3, motor2, 0, 1, 4), Scan((3, 4), (False, False))),
        (lambda: grid_scan([det], motor1, 0, 1, 3, motor2, 0, 1, 4, snake_axes=True), Scan((3, 4), (False, True))),
        (lambda: list_grid_scan([det], motor1, [0, 2], motor2, [0, 1, 5]), Scan((2, 3), (False, False))),
        (
            lambda: list_grid_scan([det], motor1, [0, 2], motor2, [0, 1, 5], snake_axes=True),
            Scan((2, 3), (False, True)),
        ),
        (lambda: list_grid_scan([det], motor1, [0, 2], motor2, [0, 1], snake_axes=[motor2]), None),
        (lambda: spiral_square([det], motor1, motor2, 0, 0, 4, 4, 4, 3), None),
        (lambda: scan([det], motor1, 0, 1, 5), None),
        (lambda: count([det], num=3), None),
    ],
)
def test_start_documents_of_blueskys_plans_state_the_grid(plan: Any, expected: Scan | None) -> None:
    starts: list[dict[str, Any]] = []
    RunEngine({})(plan(), lambda name, doc: starts.append(doc) if name == "start" else None)
    assert Scan.of(starts[0]) == expected
    assert Scan.of(starts[0], "baseline") is None
    # As they come back from a server.
    assert Scan.of({**starts[0], "shape": list(starts[0].get("shape", ())) or None}) == expected


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({}, None),
        ({"shape": (3, 4), "num_points": 24}, Scan((3, 4), (False, False), 2)),
        ({"shape": (3, 4), "num_points": 25}, Scan((3, 4), (False, False))),
        ({"shape": np.array([3, 4]), "snaking": [False, True]}, Scan((3, 4), (False, True))),
        ({"shape": (3, 0)}, None),
        ({"shape": (3, 4.5)}, None),
        ({"shape": "34"}, None),
        ({"shape": (10**9, 10**9)}, None),
        ({"shape": (3, 4), "snaking": (True,)}, None),
        ({"shape": (3, 4), "hints": {"dimensions": [(["m"], "fast")]}}, None),
        ({"shape": (3, 4), "hints": None}, Scan((3, 4), (False, False))),
    ],
)
def test_strange_start_documents_go_by_number(start: dict[str, Any], expected: Scan | None) -> None:
    assert Scan.of(start) == expected


def test_rows_beside_the_last_line_of_an_aborted_scan_are_found() -> None:
    """A row at the end of a very long line whose next line was cut off has only far rows after it."""
    wide, borrow = Scan((1000, 20_000), (False, False)), Borrow("both", 8)
    lenders = borrow.rows(19_999, 25_000, wide)
    assert [each.row for each in lenders if each.row > 19_999] == list(range(24_999, 24_991, -1))
