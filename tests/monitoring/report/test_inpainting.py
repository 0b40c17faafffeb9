"""The table of inpainting on the page of a run: the newest one, with its grid, and nothing of a file that can't be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.report import write_run_page
from pipeline.evaluation.inpainting.grid import save_methods_grid
from tests.monitoring.report.runs import written


def method(name: str, l1: float | None, **more: Any) -> dict[str, Any]:
    figures = {"l1": {"mean": l1, "lower": l1 and l1 - 0.5, "upper": l1 and l1 + 0.5}, "psnr": {"mean": 18.5, "lower": None, "upper": None}}
    return {"name": name, "title": f"Title of {name}", "figures": figures, **more}


def write_table(run: Path, step: int, methods: list[Any], **more: Any) -> Path:
    folder = run / "inpainting" / f"step_{step:09d}"
    folder.mkdir(parents=True)
    (folder / "table.json").write_text(json.dumps({"pictures": 1234, "methods": methods, "notes": [], **more}))
    return folder


def test_the_newest_table_stands_on_the_page_with_its_grid(run: Path) -> None:
    assert "Errors of the fills" not in written(run).source
    write_table(run, 8, [method("old", 30.0)])
    folder = write_table(
        run, 20, [method("mean", 12.345), method("context_encoder", 9.371)], notes=["a note of the table"], judged="a<b", mask="block"
    )
    pictures = np.full((2, 64, 64, 3), 90, np.uint8)
    masks = np.zeros((2, 64, 64), np.bool_)
    masks[:, 20:40, 20:40] = True
    save_methods_grid(folder / "grid.png", pictures, masks, {"mean": pictures, "context_encoder": pictures}, "step 20")
    page = written(run)
    assert "12.35 ± 0.50" in page.source or "12.34 ± 0.50" in page.source
    assert "9.37 ± 0.50" in page.source
    assert "18.50<" in page.source
    assert "step 20 paints into the holes of 1,234 pictures" in page.source
    assert "Pictures: a&lt;b. Masks: block." in page.source
    assert "a note of the table" in page.source
    assert "Title of old" not in page.source
    assert any(each.get("alt") == "Fills of every method beside the truth" for each in page.found("img"))
    assert 'href="#inpainting"' in page.source


def test_a_damaged_or_hostile_table_spoils_nothing(run: Path) -> None:
    folder = write_table(run, 8, [method("<script>alert(1)</script>", 3.0), {"title": "no figures"}, method("none", None)])
    (folder / "grid.png").write_bytes(b"no picture")
    page = written(run)
    assert "<script>alert" not in page.source
    assert "no figures" not in page.source
    assert "grid.png can&#x27;t be shown" in page.source
    for number, content in enumerate(("{", "[]", '{"methods": 3, "notes": []}', '{"methods": ["x"], "notes": []}', " " * (1 << 20) + "{}")):
        (write_table(run, 100 + number, []) / "table.json").write_text(content)
    found = write_run_page(run)
    damaged = [each for each in found.problems if "inpainting/step_" in each]
    assert len(damaged) == 5
    assert "Title of &lt;script&gt;" in found.path.read_text()  # an older table that can be read
