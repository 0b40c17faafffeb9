"""The page shows the newest picture grids, small enough, and follows single pictures through them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from monitoring.report.pictures import LARGEST as LARGEST_PICTURE
from monitoring.report.pictures import LARGEST_CUT, MOST_FOLLOWED, MOST_PICTURES, MOST_STEPS, chosen, follow, load
from monitoring.run_files import GRID_TEXT
from tests.monitoring.report.runs import draw, draw_grid, written


def test_the_newest_picture_is_shown_and_some_back_to_the_first() -> None:
    files = [(step, Path(f"{step}.png")) for step in range(0, 10_000, 10)]
    steps = [step for step, _ in chosen(files)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1], len(steps)) == (9990, 0, MOST_PICTURES)
    assert [step for step, _ in chosen(files[:3])] == [20, 10, 0]


def test_a_large_picture_is_shrunk_until_it_is_small_enough(run: Path) -> None:
    (picture,) = load([(1, draw(run, 1, (1600, 1300)))])
    assert len(picture.url) <= LARGEST_PICTURE * 4 / 3 + 50
    assert 0.8 < picture.width / picture.height < 0.83, "the ratio of 1300 x 1600 pixels"
    (small,) = load([(1, draw(run, 1))])
    assert (small.width, small.height) == (60, 40), "unchanged"


def test_a_damaged_picture_is_replaced_by_the_reason(run: Path) -> None:
    draw(run, 10)
    draw(run, 20).write_bytes(b"\x89PNG\r\n\x1a\nand nothing")
    page = written(run)
    assert "step_000000020.png can&#x27;t be shown" in page.source
    assert len(page.found("figure", "grid")) == 2
    assert len([each for each in page.found("img") if each.get("src", "").startswith("data:image/jpeg;base64,")]) == 1


def draw_plain(run: Path, step: int, truths: list[float], painting: float, dropped: bool = True) -> Path:
    """Draws a grid of plain pictures of 48 pixels, one a truth, all painted in one grey."""
    return draw_grid(run, step, torch.tensor(truths).view(-1, 1, 1, 1).expand(-1, 3, 48, 48), painting, dropped)


def brightness(url: str) -> float:
    """The mean of the lowest quarter of a JPEG, which is dropped."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        pixels = np.array(image.convert("L"))
    return float(pixels[-pixels.shape[0] // 4 :].mean()) / 255


def test_a_picture_is_followed_through_the_steps(tmp_path: Path) -> None:
    files = [(step, draw_plain(tmp_path, step, [0.1, 0.9], step / 1000)) for step in range(0, 1000, 50)]
    first, second = follow(files)
    assert len(first.steps) == len(second.steps) == MOST_STEPS
    assert list(first.steps) == sorted(first.steps)
    assert {0, 950} <= set(first.steps)
    for step, cut in first.steps.items():
        assert brightness(cut.url) == pytest.approx(step / 1000, abs=0.03), "the painting of that step"
        assert cut.l1 == pytest.approx(abs(step / 10 - 10), abs=0.01)
    for followed, truth in ((first, 0.1), (second, 0.9)):
        assert followed.truth is not None
        assert brightness(followed.truth.url) == pytest.approx(truth, abs=0.02)
    for cut in first.steps.values():
        assert len(cut.url) <= LARGEST_CUT * 4 / 3 + 50
    assert (first.column, first.steps[0].width, first.steps[0].height) == ("pasted", 48, 48)


def test_only_rows_of_the_same_picture_are_joined(tmp_path: Path) -> None:
    files = [(1, draw_plain(tmp_path, 1, [0.2, 0.4, 0.6], 0.1)), (2, draw_plain(tmp_path, 2, [0.6, 0.8, 0.2], 0.9))]
    found = follow(files)
    assert [round(brightness(each.truth.url), 1) for each in found if each.truth] == [0.6, 0.2], "in the order of the newest grid"
    assert [[round(brightness(cut.url), 1) for cut in each.steps.values()] for each in found] == [[0.1, 0.9]] * 2
    assert follow(files[:1]) == [], "there is nothing to follow in one grid"
    assert len(follow([(step, draw_plain(tmp_path, step, [number / 9 for number in range(9)], 0.5)) for step in (3, 4)])) == MOST_FOLLOWED


def test_a_prediction_is_followed_where_nothing_is_dropped(tmp_path: Path) -> None:
    (found,) = follow([(step, draw_plain(tmp_path, step, [0.5], 0.1 * step, dropped=False)) for step in (1, 2)])
    assert found.column == "prediction"
    assert [round(brightness(cut.url), 1) for cut in found.steps.values()] == [0.1, 0.2]


def test_the_page_shows_the_strips_without_its_script(run: Path) -> None:
    for step in (0, 10, 20):
        draw_plain(run, step, [0.1, 0.9], step / 20)
    page = written(run)
    assert len(page.found("div", "follow")) == 2
    names = [each["alt"] for each in page.found("img") if each.get("alt", "").startswith("Picture 1")]
    assert names == [
        "Picture 1, context",
        "Picture 1, painted at step 0, L1 10 %",
        "Picture 1, painted at step 10, L1 40 %",
        "Picture 1, painted at step 20, L1 90 %",
        "Picture 1, truth",
    ]
    assert len(page.found("figure", "grid")) == 3, "and the whole grids"


PLACES: dict[str, Any] = {
    "cell": [10, 10],
    "columns": [{"name": "pasted", "left": 4}, {"name": "truth", "left": 18}],
    "rows": [{"top": 20, "truth": "0123abcd", "l1": 5.0}],
}


def draw_places(run: Path, step: int, places: object) -> tuple[int, Path]:
    """Draws a grid of 60 x 40 pixels with any text of places."""
    path, text = run / "pictures" / f"step_{step:09d}.png", PngInfo()
    path.parent.mkdir(parents=True, exist_ok=True)
    text.add_text(GRID_TEXT, places if isinstance(places, str) else json.dumps(places))
    Image.new("RGB", (60, 40)).save(path, pnginfo=text)
    return step, path


@pytest.mark.parametrize(
    "places",
    [
        "no JSON",
        "[" * 60_000,
        "[]",
        {**PLACES, "cell": [10]},
        {**PLACES, "cell": [0, 10]},
        {**PLACES, "cell": [10, 1e9]},
        {**PLACES, "cell": [True, 10]},
        {**PLACES, "cell": ["10", "10"]},
        {**PLACES, "columns": {"name": "pasted"}},
        {**PLACES, "columns": [{"name": "pasted", "left": -4}]},
        {**PLACES, "columns": [{"name": "pasted", "left": 51}]},
        {**PLACES, "columns": [{"name": "other", "left": 4}]},
        {**PLACES, "rows": [{"top": 31, "truth": "0123abcd"}]},
        {**PLACES, "rows": [{"top": 20, "truth": "<script>"}]},
        {**PLACES, "rows": [{"top": 20, "truth": ["0123abcd"]}]},
        {**PLACES, "rows": [7]},
        {**PLACES, "rows": []},
        {**PLACES, "more": "x" * 100_000},
    ],
    ids=str,
)
def test_places_that_can_not_be_right_are_not_followed(run: Path, places: object) -> None:
    assert len(follow([draw_places(run, step, PLACES) for step in (1, 2)])) == 1, "these are right"
    for step in (1, 2):
        draw_places(run, step, places)
    page = written(run)
    assert not page.found("div", "follow")
    assert len(page.found("figure", "grid")) == 2, "shown whole"


def test_an_error_that_is_none_is_left_out(tmp_path: Path) -> None:
    wrongs: list[object] = [None, "<b>", [], True, 1e300, float("nan")]
    for wrong in wrongs:
        places = {**PLACES, "rows": [{"top": 20, "truth": "0123abcd", "l1": wrong}]}
        (found,) = follow([draw_places(tmp_path, step, places) for step in (1, 2)])
        assert all(cut.l1 != cut.l1 for cut in found.steps.values())
