"""Borrowing is one argument, the same in calls, settings files and on the command line; without it nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.request.toml import read_arguments
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.derived.columns import LONGEST_ROWS, SCALARS, rows_text
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import Recipe


def asked(activity: str = "replay", **options: Any) -> Request:
    return Request.asked(activity=activity, denoiser=DenoiserSettings(), **options)


def test_recipe_and_columns_without_borrowing_are_those_of_before() -> None:
    plain = asked()
    assert "borrow" not in plain.recipe.to_dict()
    assert plain.columns == SCALARS
    assert plain.recipe == asked(borrow=None).recipe


def test_what_is_borrowed_is_part_of_the_recipe_and_gives_two_columns() -> None:
    recipes = [asked(borrow=side, borrow_reach=reach).recipe for side in ("past", "both") for reach in (3, 8)]
    assert [each.borrow for each in recipes] == ["past:3", "past:8", "both:3", "both:8"]
    assert len({each.sha256 for each in [*recipes, asked().recipe]}) == 5
    assert Recipe.from_dict(recipes[0].to_dict()) == recipes[0]
    assert asked(borrow="both").recipe == recipes[3]
    columns = asked(borrow="past").columns
    assert columns == SCALARS | {"borrowed": "number", "borrowed_from": "string"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"borrow": "future"}, "past or both"),
        ({"borrow": "past", "borrow_reach": 0}, "from 1 to 64"),
        ({"borrow": "past", "borrow_reach": 2.5}, "from 1 to 64"),
        ({"borrow_reach": 4}, "without borrow"),
    ],
)
def test_what_cannot_be_borrowed_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SymDenoiseError, match=said):
        asked(**options)


def test_a_live_frame_cannot_borrow_from_rows_to_come() -> None:
    with pytest.raises(SymDenoiseError, match="replay the run with borrow='both' when it has ended"):
        asked("callback", borrow="both")
    assert asked("callback", borrow="past").recipe == asked("replay", borrow="past").recipe


def test_an_older_algorithm_borrows_nothing() -> None:
    with pytest.raises(SymDenoiseError, match="from algorithm 7 on"):
        Request.asked(activity="replay", denoiser=DenoiserSettings(algorithm="6"), borrow="past")


def test_a_settings_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('borrow = "both"\nborrow_reach = 4\n')
    assert asked(**read_arguments(path)).recipe.borrow == "both:4"


def test_rows_are_written_as_ranges_and_fit_into_a_column() -> None:
    assert rows_text([5, 4, 3, 9, 9, 1]) == "1,3-5,9"
    assert rows_text([]) == ""
    many, others = (rows_text(range(start, 400, 3)) for start in (0, 1))
    assert many.startswith("134 rows 0-399 sha256:")
    assert len(many) <= LONGEST_ROWS
    assert many != others
