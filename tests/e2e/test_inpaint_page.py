"""The page of launch/inpaint.py in a real browser, served by a real server: holes by mouse, by finger and by keyboard.

SCREENSHOTS=FOLDER keeps pictures of the page; with INPAINT_RUN=RUN, those of docs/images/ are made so.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.painter import read_painter
from pipeline.evaluation.picture.server import PageSettings, RunningPage
from tests.pipeline.evaluation.runs import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

browser = pytest.importorskip("tests.browser", reason="playwright is not installed (the extra test)", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("chromium")]


@pytest.fixture(scope="module")
def run(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    if named := os.environ.get("INPAINT_RUN"):
        return Path(named)
    return made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))


@contextmanager
def served(run: Path, **settings: int) -> Iterator[str]:
    """Serves the page on a thread; gives its address."""
    page = RunningPage(read_painter(str(run)), PageSettings(**{"max_pixels": 10_000_000, **settings}))
    thread = threading.Thread(target=page.run)
    thread.start()
    try:
        yield page.url
    finally:
        page.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from skimage import data

    path = tmp_path / "coffee.png"
    Image.fromarray(data.coffee()).save(path)
    return path


def shown(page: Page, name: str) -> None:
    """Keeps a screenshot where that is asked for, with 256 colours, which is a third of the bytes."""
    if folder := os.environ.get("SCREENSHOTS"):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(Path(folder) / name, optimize=True)


def saved(page: Page) -> NDArray[np.uint8]:
    """Pixels of the file that the page saves."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    assert download.value.suggested_filename == "coffee.inpainted.png"
    return np.asarray(Image.open(download.value.path()))


def filled(page: Page) -> NDArray[np.uint8]:
    """Fills, waits for the result and saves it."""
    page.get_by_role("button", name="Fill", exact=True).click()
    page.get_by_role("link", name="Save").wait_for()
    assert "pixels filled" in page.locator("#state").inner_text()
    return saved(page)


def on_canvas(page: Page, x: float, y: float) -> tuple[float, float]:
    """The point of the window that shows a pixel of the 600 x 400 picture."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"] / 600, box["y"] + y * box["height"] / 400


def changed(after: NDArray[np.uint8], photograph: Path) -> NDArray[np.bool_]:
    return (after != np.asarray(Image.open(photograph))).any(2)


def test_a_hole_that_is_painted_with_the_mouse_is_filled_and_saved(run: Path, photograph: Path) -> None:
    with served(run) as url, browser.visiting(url, online=True, height=820) as visit:
        page = visit.page
        assert page.get_by_role("button", name="Fill", exact=True).is_disabled()
        page.set_input_files("#file", photograph)
        page.locator("#canvas").wait_for()
        shown(page, "paint-before.png")
        for _ in range(2):  # the second is taken back
            page.mouse.move(*on_canvas(page, 470, 80))
            page.mouse.down()
            page.mouse.move(*on_canvas(page, 520, 100), steps=4)
            page.mouse.up()
            page.mouse.move(*on_canvas(page, 60, 60))
            page.mouse.down()
            page.mouse.move(*on_canvas(page, 60, 110))
            page.mouse.up()
            page.keyboard.press("Control+z")
            page.get_by_role("button", name="Undo").click() if _ else None
        shown(page, "paint-painting.png")
        difference = changed(filled(page), photograph)
        shown(page, "paint-after.png")
        near = np.zeros_like(difference)
        near[80 - 25 : 100 + 26, 470 - 25 : 520 + 26] = True
        assert not difference[~near].any()
        assert difference[80:100, 475:515].mean() > 0.9
        page.get_by_role("button", name="Show before").click()
        assert page.locator("#before").get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Go on with this").click()
        page.get_by_role("link", name="Save").wait_for(state="hidden")
        page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.get_by_text("no.png is no picture that this browser can show").wait_for()
        assert visit.errors == []
        assert {each.removeprefix(url) for each in visit.requests if not each.startswith("blob:")} == {"", "page.css", "page.js", "fill"}


def test_a_finger_paints_and_the_page_fits_a_phone(run: Path, photograph: Path) -> None:
    with served(run) as url, browser.visiting(url, online=True, width=390, height=844, scheme="dark") as visit:
        page = visit.page
        page.set_input_files("#file", photograph)
        page.locator("#canvas").wait_for()
        page.touchscreen.tap(*on_canvas(page, 300, 200))
        difference = changed(filled(page), photograph)
        assert difference[195:205, 295:305].all()
        assert not difference[:150].any()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.errors == []


def test_the_keyboard_alone_paints_a_rectangle_and_errors_stand_on_the_page(run: Path, photograph: Path) -> None:
    with served(run, max_pixels=240_000) as url, browser.visiting(url, online=True) as visit:
        page = visit.page
        page.set_input_files("#file", photograph)
        page.locator("#canvas").wait_for()
        page.locator("#brush").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#rectangle").is_checked()
        page.locator("#canvas").focus()
        page.keyboard.press("Space")
        for key in ("Shift+ArrowRight", "Shift+ArrowDown", "Space", "Enter"):
            page.keyboard.press(key)
        page.get_by_role("link", name="Save").wait_for()
        difference = changed(saved(page), photograph)
        assert difference[200:224, 300:324].mean() > 0.9
        difference[200:224, 300:324] = False
        assert not difference.any()
        large = Image.open(photograph).resize((700, 400))
        large.save(photograph)
        page.set_input_files("#file", photograph)
        page.get_by_text("700 x 400").wait_for()
        page.locator("#canvas").focus()
        for key in ("Space", "ArrowRight", "Space", "Enter"):
            page.keyboard.press(key)
        page.get_by_role("alert").get_by_text("700 x 400 pixels are more than max_pixels, 240000").wait_for()
        assert [each for each in visit.errors if "400 (Bad Request)" not in each] == []
