"""The figures of paintings on held-back pictures, beside two paintings that need no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline import figures
from pipeline.recipes.player import Networks, PaintingRecipe, Paintings, Views
from pipeline.training.held_back.activity import colour_spread
from pipeline.training.held_back.judge import MeasureAll

_FIGURES = ("loss", "l1", "l2", "psnr")


class PaintingJudge:
    """Judges a recipe that paints; see `judge.Judge`.

    Args:
        recipe: recipe to judge.
    """

    def __init__(self, recipe: PaintingRecipe) -> None:
        self.recipe = recipe
        self.player = recipe.painter
        self._baselines: dict[str, dict[str, float]] = {}

    def answer(self, views: Views, networks: Networks) -> Tensor:
        """Paints, float32 (n, 3, S, S)."""
        painting = self.recipe.paint(views, networks)
        self._shape = painting.shape[1:]
        return painting

    def rows(self, views: Views, answer: Tensor) -> Mapping[str, Tensor]:
        """Measures paintings: their figures, the mean colour of the visible part, and those of the painting and of the truth."""
        shown = self.recipe.paintings(views, answer)
        judged = figures.judged_pixels(shown.mask)
        return {
            "figures": self._errors(views, answer, shown),
            "visible": figures.mean_colour(shown.truth, figures.visible_pixels(shown.mask)),
            "colours": torch.stack([figures.mean_colour(each, judged) for each in (shown.prediction, shown.truth)], 1),
        }

    def figures(self, found: Mapping[str, Tensor], readable: Tensor, measure_all: MeasureAll) -> dict[str, Any]:
        """Computes loss, l1, l2 and psnr of the network and of the baselines, and the gain in l1 over the stronger one."""
        if not self._baselines:
            self._baselines = self._measure_baselines(found["visible"], readable, measure_all)
        row: dict[str, Any] = dict(zip(_FIGURES, found["figures"][readable].mean(0).tolist(), strict=True))
        row["baselines"] = self._baselines
        row["gain"] = 1 - row["l1"] / min(each["l1"] for each in self._baselines.values())
        return row

    def spread(self, found: Mapping[str, Tensor], readable: Tensor) -> dict[str, Any]:
        """Computes the spread of the painted colours."""
        colours = found["colours"][readable]
        return {"output_spread": colour_spread(colours[:, 0], colours[:, 1])}

    def _errors(self, views: Views, painting: Tensor, shown: Paintings) -> Tensor:
        """The figures of paintings, float64 (n, 4) in the order of _FIGURES."""
        errors = figures.errors(shown.prediction, shown.truth, shown.mask)
        loss = self.recipe.reconstruction(painting, views).double()
        return torch.stack([loss, errors.l1, errors.l2, errors.psnr], 1)

    def _measure_baselines(self, visible: Tensor, readable: Tensor, measure_all: MeasureAll) -> dict[str, dict[str, float]]:
        """The mean figures of both baselines, by their names, over all readable pictures: paintings of one colour each.

        Args:
            visible: mean colour of each picture's visible part, float64 (pictures, 3).
            readable: bool (pictures,).
            measure_all: as in `judge.Judge.figures`.
        """
        paints = {"constant": visible[readable].mean(0).expand_as(visible), "visible_mean": visible}

        def measure(views: Views, pictures: range) -> dict[str, Tensor]:
            device = next(iter(views.values())).device
            found = {}
            for name, colours in paints.items():
                colour = self.recipe.scale.of_colours(colours[pictures.start : pictures.stop].to(device))
                painting = colour.expand(len(pictures), *self._shape)
                found[name] = self._errors(views, painting, self.recipe.paintings(views, painting))
            return found

        summed = measure_all(measure, list(paints), len(_FIGURES))
        return {name: dict(zip(_FIGURES, summed[name][readable].mean(0).tolist(), strict=True)) for name in paints}
