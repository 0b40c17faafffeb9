"""The page shows the newest picture grids, small enough."""

from __future__ import annotations

from pathlib import Path

from monitoring.report.pictures import LARGEST as LARGEST_PICTURE
from monitoring.report.pictures import MOST_PICTURES, chosen, load
from tests.monitoring.report.runs import draw, written


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
