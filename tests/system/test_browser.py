"""What a browser shows of a denoised run: the report page and the pictures, from a real server in a real Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from raw_runs import write_run
from tiled.client.container import Container

from bluesky_symdenoise import embedded_catalog, replay
from bluesky_symdenoise.denoiser.infer import Denoiser

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
KEY = "browserKey1"
HOSTILE = "<script>document.title='owned'</script><img src=http://example.org/x onerror=alert(1)>"

pytestmark = [
    pytest.mark.server,
    pytest.mark.process,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"),
]


def rings(frames: int = 3) -> np.ndarray:
    y, x = np.ogrid[:96, :96]
    radius = np.hypot(y - 47.5, x - 47.5)
    rate = 0.3 + 9 * np.exp(-((radius - 25) ** 2) / 20)
    counts = np.random.default_rng(5).poisson(rate, (frames, 96, 96)).astype(np.uint16)
    counts[:, 40:44] = 65535
    return counts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, str]]:
    """A served catalogue with one denoised run, whose metadata try to run a script; and the run's uid."""

    home = tmp_path_factory.mktemp("browser")
    with embedded_catalog(home, api_key=KEY) as client:
        start = {"sample_name": HOSTILE, "plan_name": "count"}
        uid = write_run(client["raw"], home / "frames", {"det": rings()}, start=start)
        run = replay(
            client["raw"][uid],
            into=client["denoised"],
            denoiser=Denoiser.pretrained(threads=1),
            symmetry="2mm",
            beam_center=(47.5, 47.5),
        )
        yield client, run.start["uid"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--window-size=1280,1000", "--disable-gpu"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def opened(chromium: Any, url: str, path: Path) -> tuple[list[str], set[str]]:
    """Open a page and keep a picture of it: errors in its console, and hosts that it asked for something."""
    import json

    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    chromium.get(url)
    height = chromium.execute_script("return document.documentElement.scrollHeight")
    chromium.set_window_size(1280, min(max(height, 600), 6000) + 140)
    folder = Path(os.environ.get("SYMDENOISE_SCREENSHOTS", path.parent))
    chromium.save_screenshot(str(folder / path.name))
    errors = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    sent = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]
    return errors, {urlsplit(each).netloc for each in asked if each.startswith("http")}


def address(client: Container, path: str, media_type: str) -> str:
    return f"{client.context.api_uri}{path}?format={media_type}&api_key={KEY}"


def test_the_report_page_opens_with_its_pictures_and_asks_no_other_host(
    served: tuple[Container, str], chromium: Any, tmp_path: Path
) -> None:
    client, uid = served
    url = address(client, f"container/full/denoised/{uid}", "text/html")
    errors, hosts = opened(chromium, url, tmp_path / "shot-report.png")
    assert errors == []
    assert hosts == {urlsplit(url).netloc}
    widths = chromium.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 3
    assert min(widths) > 500
    assert chromium.title == f"Denoised run {uid[:8]}"


def test_metadata_are_text_on_the_page_and_nothing_else(served: tuple[Container, str], chromium: Any) -> None:
    client, uid = served
    chromium.get(address(client, f"container/full/denoised/{uid}", "text/html;frames=0"))
    assert HOSTILE in chromium.execute_script("return document.body.innerText")
    assert chromium.execute_script("return document.scripts.length") == 0
    assert chromium.title != "owned"


def test_a_browser_that_follows_the_run_s_link_gets_the_report(served: tuple[Container, str], chromium: Any) -> None:
    """A browser asks for HTML first: no format has to be named."""
    client, uid = served
    chromium.get(f"{client.context.api_uri}container/full/denoised/{uid}?api_key={KEY}")
    assert chromium.title == f"Denoised run {uid[:8]}"


def test_the_picture_of_an_image_opens(served: tuple[Container, str], chromium: Any, tmp_path: Path) -> None:
    client, uid = served
    url = address(client, f"array/full/denoised/{uid}/primary/det", "image/png")
    errors, _ = opened(chromium, url, tmp_path / "shot-picture.png")
    assert [error for error in errors if "favicon" not in error] == []
    # Three frames of 96 pixels on a sheet of two columns.
    assert chromium.execute_script("return document.images[0].naturalWidth") == 2 * 96 + 2
    chromium.get(f"{url}&slice=0,0,::2,::2")
    assert chromium.execute_script("return document.images[0].naturalWidth") == 48
