"""The bench of report pages measures a real server, and says what its users got."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bluesky_symdenoise.bench.load.page import main
from bluesky_symdenoise.bench.measured.page import texts


@pytest.mark.server
@pytest.mark.process
def test_it_says_what_users_got_and_how_long_it_took(tmp_path: Path) -> None:
    written = tmp_path / "page.json"
    results = main(written, size=64, repeats=1, clients=3)
    first, others, memory, same, different, beside = results
    assert memory["seconds"][0] < first["seconds"]
    assert len(others["seconds"]) == 1
    for users in (same, different):
        assert users["statuses"] == {"200": 3}
        assert users["met"]
    assert beside["reads"] > 0
    content = json.loads(written.read_text())
    content["header"]["command"] = "symdenoise bench page"
    assert texts(content)["table"].count("\n") == 1 + len(results)
