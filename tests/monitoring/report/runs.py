"""Run folders as tests make them, and the page of a run as they read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from monitoring.report import write_run_page
from pipeline.recipes.player import Paintings
from pipeline.training.record.grid import save_grid

BEGUN = 1_700_000_000.0


def history_row(step: int, attempt: int, loss: float | None = None, **more: Any) -> dict[str, Any]:
    """Returns a line of a history."""
    value = loss if loss is not None else 1.0 / step
    return {
        "step": step,
        "attempt": attempt,
        "epoch": 0,
        "batch": step - 1,
        "samples": "0" * 16,
        "rate": min(1.0, step / 10),
        "losses": {
            "discriminator": {"total": 0.7, "adversarial": 0.7, "accuracy_real": 0.75, "accuracy_generated": 0.5},
            "generator": {"total": value, "reconstruction": value * 2, "adversarial": 0.6},
        },
        "gradient_norms": {"discriminator": 0.1, "generator": 3.0},
        "skipped": [],
        "images_per_second": 40.0,
        "data_wait_share": 0.02,
        **more,
    }


def start(attempt: int, step: int, **more: Any) -> dict[str, Any]:
    """Returns the event of the start of an attempt."""
    facts = {"world_size": 2, "global_batch": 8, "recipe": "inpainting", "restarts": 0, "position": {"epoch": 0, "consumed": 8 * step}}
    return {"time": BEGUN + 100 * attempt, "event": "start", "attempt": attempt, "step": step, **facts, **more}


def write_run(folder: Path, events: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], **kept: Any) -> Path:
    """Writes a run folder; `kept` are settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("events", events), ("history", history)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": "inpainting", "training": {"steps": 100, "global_batch": 8}, **kept}))
    return folder


def draw(run: Path, step: int, size: tuple[int, int] = (40, 60)) -> Path:
    """Draws a picture grid of noise into a run folder."""
    path = run / "pictures" / f"step_{step:09d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(step).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def draw_grid(run: Path, step: int, truth: Tensor, prediction: Tensor | float = 0.5, dropped: bool = True) -> Path:
    """Draws a grid as training does.

    Args:
        run: run folder.
        step: step of the grid.
        truth: pictures, float (n, 3, H, W).
        prediction: paintings of the same shape, or a grey.
        dropped: the lower half of each picture is dropped; else nothing is.
    """
    mask = torch.zeros_like(truth[:, :1], dtype=torch.bool)
    mask[:, :, truth.shape[2] // 2 :] = dropped
    painted = prediction if isinstance(prediction, Tensor) else torch.full_like(truth, prediction)
    path = run / "pictures" / f"step_{step:09d}.png"
    paintings = Paintings(truth, painted, truth, mask)
    save_grid(path, paintings, (100 * (painted - truth).abs().flatten(1).mean(1)).tolist())
    return path


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data

    def found(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        """Returns the attributes of all elements of a tag, and of a class where one is given."""
        return [
            attributes
            for name, attributes in self.elements
            if (name == tag and kind in attributes.get("class", "").split()) or (name == tag and not kind)
        ]


def written(run: Path) -> Page:
    """Writes the page of a run and reads it."""
    return Page(write_run_page(run).path)


BASELINES = {
    "constant": {"loss": 0.474, "l1": 11.9, "l2": 2.9, "psnr": 15.1},
    "visible_mean": {"loss": 0.395, "l1": 9.9, "l2": 2.3, "psnr": 16.9},
}


def evaluation_row(step: int, loss: float, attempt: int = 1, **more: Any) -> dict[str, Any]:
    """Returns a line of the evaluations of a run."""
    return {
        "step": step,
        "attempt": attempt,
        "pictures": 256,
        "loss": loss,
        "l1": 25 * loss,
        "l2": 6 * loss,
        "psnr": 18.2,
        "baselines": BASELINES,
        "gain": 1 - loss / 0.395,
        "maps": {"relu1": 96, "relu5": 256},
        "dead_maps": {"relu1": 0, "relu5": 0},
        "output_spread": 0.41,
        "feature_dimensions": 12.3,
        "feature_spread": 0.7,
        "probe": {"classes": 40, "chance": 0.03, "knn": 0.21, "ridge": 0.3},
        "seconds": 1.2,
        **more,
    }


def write_evaluations(run: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes the evaluations of a run folder."""
    (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run
