"""Reading ahead of the frames of a stored run: the right frames, and few that nobody asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs.ahead import MOST, MOST_BYTES, Ahead

ROWS = 100


class Numbered:
    """Frames whose pixels are their number; each number that is read is noted."""

    def __init__(self, shape: tuple[int, int] = (4, 4), unreadable: int = 0) -> None:
        self.read_so_far: list[int] = []
        self._shape, self._unreadable = shape, unreadable

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        return 1 <= seq_num <= ROWS

    def announced(self) -> Sequence[int]:
        return range(1, ROWS + 1)

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        self.read_so_far.append(seq_num)
        if seq_num == self._unreadable:
            raise OSError(f"frame {seq_num}")
        return np.full(self._shape, seq_num + 1000 * turn, np.uint16)

    def close(self) -> None:
        pass


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline, "it was never reached"
        time.sleep(0.01)


@pytest.fixture
def source() -> Numbered:
    return Numbered()


@pytest.fixture
def ahead(source: Numbered) -> Iterator[Ahead]:
    made = Ahead(source)
    yield made
    made.close()


@pytest.mark.parametrize("step", [1, 3])
def test_many_frames_are_read_ahead_once_their_order_is_clear(ahead: Ahead, source: Numbered, step: int) -> None:
    numbers = list(range(1, ROWS + 1, step))
    for place, number in enumerate(numbers[:9]):
        assert (ahead.read("det", number) == number).all()
        assert len(source.read_so_far) <= place + 2 + 2 ** (place + 1)
    until(lambda: source.read_so_far[-1] >= min(ROWS - step + 1, numbers[8] + step * MOST - step))
    for number in numbers[9:]:
        assert (ahead.read("det", number) == number).all()
    wrongly = [number for number in source.read_so_far if number not in numbers]
    assert len(wrongly) <= 1
    assert len(source.read_so_far) == len(numbers) + len(wrongly)


def test_an_order_that_cannot_be_guessed_costs_one_frame_each(ahead: Ahead, source: Numbered) -> None:
    asked = [50, 3, 40, 7, 90, 2, 60]
    for number in asked:
        assert (ahead.read("det", number) == number).all()
    assert len(source.read_so_far) <= 2 * len(asked)


def test_repeated_points_and_going_back_give_their_own_frames(ahead: Ahead) -> None:
    asked = [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 0), (5, 0), (1, 0)]
    for number, turn in asked:
        assert (ahead.read("det", number, turn) == number + 1000 * turn).all()


def test_large_frames_are_read_one_ahead() -> None:
    source = Numbered((1, MOST_BYTES))
    ahead = Ahead(source)
    for number in range(1, 8):
        ahead.read("det", number)
        assert len(source.read_so_far) <= number + 1
    ahead.close()


def test_a_frame_that_cannot_be_read_fails_alone() -> None:
    source = Numbered(unreadable=6)
    ahead = Ahead(source)
    for number in range(1, 12):
        if number == 6:
            with pytest.raises(OSError, match="frame 6"):
                ahead.read("det", number)
        else:
            assert (ahead.read("det", number) == number).all()
    ahead.close()
