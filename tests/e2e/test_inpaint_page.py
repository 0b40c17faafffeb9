"""The page of launch/inpaint.py in a real browser, served by a real server: holes by mouse, by finger and by keyboard.

SCREENSHOTS=FOLDER keeps pictures of the page; with INPAINT_RUN=RUN, those of docs/images/ are made so.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.pipeline.evaluation.paint_page import served
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


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from skimage import data

    path = tmp_path / "coffee.png"
    Image.fromarray(data.coffee()).save(path)
    return path


def shown(page: Page, name: str) -> None:
    """Keeps a screenshot where that is asked for, with 96 colours, which is a quarter of the bytes."""
    if folder := os.environ.get("SCREENSHOTS"):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(96, dither=Image.Dither.NONE).save(Path(folder) / name, optimize=True)


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


def on_canvas(page: Page, x: float, y: float, width: int = 600, height: int = 400) -> tuple[float, float]:
    """The point of the window that shows a pixel of the picture."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / height


def changed(after: NDArray[np.uint8], photograph: Path) -> NDArray[np.bool_]:
    return (after != np.asarray(ImageOps.exif_transpose(Image.open(photograph)))).any(2)


def paint(page: Page, *points: tuple[float, float]) -> None:
    """Paints a stroke with the mouse, along pixels of the picture."""
    page.mouse.move(*on_canvas(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*on_canvas(page, *point), steps=4)
    page.mouse.up()


def test_a_hole_is_painted_with_the_mouse_or_with_the_keyboard(run: Path, photograph: Path) -> None:
    with served(run, max_pixels=240_000) as url, browser.visiting(url, online=True, width=1000, height=720) as visit:
        page = visit.page
        fill = page.get_by_role("button", name="Fill", exact=True)
        assert fill.is_disabled()
        page.set_input_files("#file", photograph)
        page.locator("#canvas").wait_for()
        shown(page, "paint-before.png")
        paint(page, (470, 80), (520, 100))
        paint(page, (60, 60), (60, 110))
        page.get_by_role("button", name="Undo").click()
        paint(page, (60, 60), (90, 110))
        page.keyboard.press("Control+z")
        shown(page, "paint-painting.png")
        difference = changed(filled(page), photograph)
        shown(page, "paint-after.png")
        assert difference[80:100, 475:515].mean() > 0.9
        difference[80 - 25 : 100 + 26, 470 - 25 : 520 + 26] = False
        assert not difference.any(), "the strokes that were taken back, and everything else"
        before = page.get_by_role("button", name="Show before")
        before.click()
        assert before.get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Go on with this").click()
        page.get_by_role("link", name="Save").wait_for(state="hidden")
        assert fill.is_disabled()
        paint_with_keys(page, photograph)
        refuse(page, photograph)
        assert [each for each in visit.errors if "400 (Bad Request)" not in each] == []
        assert {each.removeprefix(url) for each in visit.requests if not each.startswith("blob:")} == {
            "",
            "page.css",
            "page.js",
            "upright",
            "fill",
        }


def paint_with_keys(page: Page, photograph: Path) -> None:
    """A rectangle, on the same picture opened anew."""
    page.set_input_files("#file", photograph)
    page.get_by_text("coffee.png, 600 x 400").wait_for()
    page.locator("#brush").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#rectangle").is_checked()
    page.locator("#canvas").focus()
    for key in ("Space", "Shift+ArrowRight", "Shift+ArrowDown", "Space", "Enter"):
        page.keyboard.press(key)
    page.get_by_role("link", name="Save").wait_for()
    difference = changed(saved(page), photograph)
    assert difference[200:224, 300:324].mean() > 0.9
    difference[200:224, 300:324] = False
    assert not difference.any()


def refuse(page: Page, photograph: Path) -> None:
    """A file that is no picture, and a picture that the server refuses: one line on the page, which shows the last picture still."""
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_role("alert").get_by_text("no.png: not in a picture format that is known here").wait_for()
    Image.open(photograph).resize((700, 400)).save(photograph)
    page.set_input_files("#file", photograph)
    page.get_by_role("alert").get_by_text("coffee.png: 700 x 400 pixels are more than --max-pixels, 240000").wait_for()
    page.evaluate("open(new Blob([new Uint8Array(64000001)]), 'coffee.png', 'The filled picture, a PNG,')")
    page.get_by_role("alert").get_by_text("The filled picture, a PNG, has more than 64 MB").wait_for()
    assert page.get_by_role("link", name="Save").is_visible()


def test_a_finger_paints_on_a_turned_picture_and_the_page_fits_a_phone(run: Path, photograph: Path) -> None:
    with served(run) as url, browser.visiting(url, online=True, width=390, height=844, scheme="dark") as visit:
        page = visit.page
        for ending, orientation, width, height in ((".jpg", 6, 400, 600), (".webp", 3, 600, 400)):  # Chromium does not turn a WebP
            turned, exif = photograph.with_suffix(ending), Image.Exif()
            exif[0x0112] = orientation
            Image.open(photograph).save(turned, exif=exif, lossless=True)
            page.set_input_files("#file", turned)
            page.get_by_text(f"coffee{ending}, {width} x {height}").wait_for()
            page.touchscreen.tap(*on_canvas(page, 300, 100, width, height))
            difference = changed(filled(page), turned)
            assert difference[95:105, 295:305].mean() > 0.9
            difference[50:150, 250:350] = False
            assert not difference.any()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.errors == []
