"""A catalogue that an earlier version wrote, before the modules moved: everything in it is found, read and finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from earlier_catalogue import KEY, Earlier, earlier_catalogue

from bluesky_symdenoise import denoised_for, recompute
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = [pytest.mark.server, pytest.mark.process]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Earlier]:
    with earlier_catalogue(tmp_path_factory.mktemp("earlier")) as found:
        yield found


def _image(run: Any) -> np.ndarray:
    return np.asarray(run["primary"]["det"].read())


@pytest.mark.parametrize("kind", ["computed", "lazy"])
def test_derived_run_is_found_and_read(kind: str, earlier: Earlier) -> None:
    run = denoised_for(earlier.client, earlier.raw[kind])
    assert run is not None
    uid, total = earlier.sums[kind]
    assert run.start["uid"] == uid
    # Bits of a computed frame are those of a processor; a stored one is as it was.
    assert np.nansum(_image(run)) == pytest.approx(total, rel=0 if kind == "computed" else 1e-4)


def test_frame_is_recomputed(earlier: Earlier) -> None:
    run = denoised_for(earlier.client, earlier.raw["computed"])
    again = recompute(run, 1)
    np.testing.assert_allclose(np.asarray(again["intensity"]).squeeze(), _image(run)[1].squeeze(), rtol=1e-3)


def test_what_was_interrupted_spooled_or_left_is_finished(
    earlier: Earlier, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One half-written, one that the server was away for, one whose documents a killed process left."""
    monkeypatch.setenv("TILED_API_KEY", KEY)
    with pytest.raises(SystemExit) as end:
        main(["catch-up", earlier.client.uri, "--threads", "1", "--symmetry", "1"])
    assert not end.value.code, capsys.readouterr()
    for kind in ("interrupted", "spooled", "left_on_disk"):
        run = denoised_for(earlier.client, earlier.raw[kind])
        assert run is not None, kind
        assert run.metadata["stop"]["provenance"]["complete"], kind
        assert np.isfinite(_image(run)).all(), kind
