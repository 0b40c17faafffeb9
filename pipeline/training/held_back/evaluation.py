"""The evaluation of the networks on held-back pictures with fixed crops and masks.

The pictures are divided into chunks of a fixed size, and chunks among the ranks. A chunk is the same whichever rank computes it, and the
figures are made from the table of all pictures, so that every number of ranks gives the same figures. Networks are in evaluation mode and
without gradient, and nothing is drawn from torch's generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from pipeline import figures
from pipeline.config import TrainingConfig
from pipeline.recipes.player import Networks, Paintings, Recipe, Views
from pipeline.stream.fixed import FixedChoice, FixedSamples
from pipeline.stream.read.samples import BadSample
from pipeline.training.engine.engine import Engine, evaluating
from pipeline.training.held_back.activity import colour_spread, dead_maps, feature_dimensions, feature_spread, watched
from pipeline.training.held_back.sheet import Sheet, sheet_of
from pipeline.training.held_back.small_probe import small_probe
from pipeline.training.held_back.table import Tables
from pipeline.training.ranks.world import World

CHUNK = 32
"""Pictures that go through the networks at once. The last bits of figures depend on it."""
_FIGURES = ("loss", "l1", "l2", "psnr")
_MOST_FEATURES = 1024  # pictures whose features are compared with each other


class Evaluation:
    """The evaluation of one run; every rank makes one and calls it at the same steps.

    Args:
        recipe: recipe that makes the views.
        engines: engines of the players.
        world: ranks of the run.
        training: settings of the precision.
        choice: pictures to evaluate on; at least one.
        report_bad: called with the error of each picture that can't be read, on the rank that evaluates it.
    """

    def __init__(
        self,
        recipe: Recipe,
        engines: Sequence[Engine],
        world: World,
        training: TrainingConfig,
        choice: FixedChoice,
        report_bad: Callable[[BadSample], None],
    ) -> None:
        self._recipe, self._engines, self._world, self._training, self._choice = recipe, engines, world, training, choice
        self._report_bad = report_bad
        self._chunks = [range(start, min(start + CHUNK, choice.count)) for start in range(0, choice.count, CHUNK)]
        self._own = list(range(world.rank, len(self._chunks), world.size))
        self._sheet = list(range(-(-min(training.pictures, choice.count) // CHUNK))) if world.is_first else [0]
        self._network = next(each for each in engines if each.player.name == recipe.painter).network
        self._baselines: dict[str, dict[str, float]] = {}
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        # in the background, because a run that continues needs the pictures only later
        self._samples: dict[int, Future[FixedSamples]] = {
            chunk: self._reading.submit(self._read, chunk) for chunk in sorted({*self._own, *self._sheet})
        }

    @property
    def digest(self) -> str:
        """Digits that differ between evaluations on other pictures, crops or masks, whose figures can't be compared."""
        return self._choice.digest

    def __call__(self) -> dict[str, Any] | None:
        """Evaluates the networks as they are; every rank must call it.

        Returns:
            A row of `evaluation.jsonl` without `step` and `attempt`, the same on every rank; see docs/learning.md. None if no picture can
            be read.

        Raises:
            ShardError: a shard of the pictures can't be read.
            QuarantineFull: more samples are unreadable than allowed.
        """
        began = time.monotonic()
        tables = Tables(self._choice.count)
        with evaluating(self._engines) as networks:
            for chunk in self._rounds():
                self._measure(chunk, networks, tables)
        found = tables.sum(self._world)
        readable = found["readable"] > 0
        if not readable.any():
            return None
        if not self._baselines:
            self._baselines = self._measure_baselines(found["visible"], readable)
        row: dict[str, Any] = {"pictures": int(readable.sum()), "choice": self.digest}
        row |= dict(zip(_FIGURES, found["figures"][readable].mean(0).tolist(), strict=True))
        row["baselines"] = self._baselines
        row["gain"] = 1 - row["l1"] / min(each["l1"] for each in self._baselines.values())
        row |= self._state(found, readable)
        row["seconds"] = round(time.monotonic() - began, 3)
        return row

    def sheet(self) -> Sheet | None:
        """Paints `training.pictures` pictures for a grid, the same in every grid of a run; every rank must call it.

        Returns:
            The pictures, on rank 0; None on the other ranks, and if none can be read.
        """
        parts: list[Paintings] = []
        readable: list[Tensor] = []
        with evaluating(self._engines) as networks:
            for chunk in range(-(-min(self._training.pictures, self._choice.count) // CHUNK)):
                samples = self._samples[chunk if self._world.is_first else 0].result()
                views = self._views(samples)
                parts.append(self._recipe.paintings(views, self._paint(views, networks)))
                readable.append(samples.readable)
        if not self._world.is_first:
            return None
        shown = torch.cat(readable).nonzero().flatten()[: self._training.pictures]
        if not len(shown):
            return None
        columns = (torch.cat([getattr(part, name).cpu() for part in parts])[shown] for name in ("context", "prediction", "truth", "mask"))
        return sheet_of(Paintings(*columns), "pictures that are not trained on")

    def close(self) -> None:
        """Ends the reading of pictures that has not begun."""
        self._reading.shutdown(wait=True, cancel_futures=True)

    def _read(self, chunk: int) -> FixedSamples:
        samples, bad = self._choice.read(self._chunks[chunk])
        if chunk in self._own:
            for error in bad:
                self._report_bad(error)
        return samples

    def _rounds(self) -> Iterator[int]:
        """The chunks of this rank. Where other ranks have one more, a chunk is repeated, because weights that are divided among the ranks
        are gathered in a forward pass of all of them; it fills the same rows again, on the same rank."""
        for number in range(-(-len(self._chunks) // self._world.size)):
            yield self._own[number] if number < len(self._own) else self._own[-1] if self._own else -1

    def _views(self, samples: FixedSamples) -> Views:
        device = self._world.device
        labels = samples.labels.to(device) if self._choice.labelled else None
        return self._recipe.views(samples.images.to(device), samples.masks.to(device), labels, samples.keys.to(device))

    def _paint(self, views: Views, networks: Networks) -> Tensor:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._training.precision == "bf16"):
            return self._recipe.paint(views, networks)

    def _measure(self, chunk: int, networks: Networks, tables: Tables) -> None:
        """Puts a chunk's rows into the tables; of -1, which a rank without any chunk has, nothing but zeros."""
        samples = self._samples[max(chunk, 0)].result()
        views, start = self._views(samples), self._chunks[max(chunk, 0)].start

        def put(name: str, first: int, values: Tensor, rows: int | None = None) -> None:
            tables.put(name, first, torch.zeros_like(values) if chunk < 0 else values, rows)

        def put_features(name: str, features: Tensor | None) -> None:
            if features is not None:
                rows = min(_MOST_FEATURES, self._choice.count)
                kept = features[: max(0, rows - start)]
                put(name, start if len(kept) else 0, kept, rows)

        with watched(self._network) as activity:
            painting = self._paint(views, networks)
            self._shape = painting.shape[1:]
            for edge, maps in (("highest", activity.highest), ("lowest", activity.lowest)):
                for layer, values in maps.items():
                    put(f"{edge} {layer}", max(chunk, 0), values[None], len(self._chunks))
            put_features("features", activity.features)
            if self._choice.labelled:
                self._paint(self._recipe.views(*self._whole(samples)), networks)
                put_features("clean features", activity.features)
        shown = self._recipe.paintings(views, painting)
        put("readable", start, samples.readable)
        put("labels", start, samples.labels)
        put("figures", start, self._figures(views, painting, shown))
        put("visible", start, figures.mean_colour(shown.truth, figures.visible_pixels(shown.mask)))
        judged = figures.judged_pixels(shown.mask)
        put("colours", start, torch.stack([figures.mean_colour(each, judged) for each in (shown.prediction, shown.truth)], 1))

    def _whole(self, samples: FixedSamples) -> tuple[Tensor, Tensor, None, Tensor]:
        """The arguments of `Recipe.views` for pictures from which nothing is dropped."""
        device = self._world.device
        return samples.images.to(device), torch.zeros_like(samples.masks, device=device), None, samples.keys.to(device)

    def _figures(self, views: Views, painting: Tensor, shown: Paintings) -> Tensor:
        """The figures of paintings, float64 (n, 4) in the order of _FIGURES."""
        errors = figures.errors(shown.prediction, shown.truth, shown.mask)
        loss = self._recipe.reconstruction(painting, views).double()
        return torch.stack([loss, errors.l1, errors.l2, errors.psnr], 1)

    def _measure_baselines(self, visible: Tensor, readable: Tensor) -> dict[str, dict[str, float]]:
        """The mean figures of both baselines, by their names, over all readable pictures: paintings of one colour each.

        Args:
            visible: mean colour of each picture's visible part, float64 (pictures, 3).
            readable: bool (pictures,).
        """
        paints = {"constant": visible[readable].mean(0).expand_as(visible), "visible_mean": visible}
        tables = Tables(self._choice.count)
        for name in paints:
            tables.put(name, 0, torch.zeros(0, len(_FIGURES), dtype=torch.float64))
        with torch.no_grad():
            for chunk in self._own:
                views, own = self._views(self._samples[chunk].result()), self._chunks[chunk]
                for name, colours in paints.items():
                    colour = self._recipe.scale.of_colours(colours[own.start : own.stop].to(self._world.device))
                    painting = colour.expand(len(own), *self._shape)
                    tables.put(name, own.start, self._figures(views, painting, self._recipe.paintings(views, painting)))
        summed = tables.sum(self._world)
        return {name: dict(zip(_FIGURES, summed[name][readable].mean(0).tolist(), strict=True)) for name in paints}

    def _state(self, found: Mapping[str, Tensor], readable: Tensor) -> dict[str, Any]:
        """The state of maps, outputs and features, and the small probe."""
        layers = sorted(name.removeprefix("highest ") for name in found if name.startswith("highest "))
        colours = found["colours"][readable]
        row: dict[str, Any] = {
            "maps": {layer: found[f"highest {layer}"].shape[1] for layer in layers},
            "dead_maps": {layer: dead_maps(found[f"highest {layer}"], found[f"lowest {layer}"]) for layer in layers},
            "output_spread": colour_spread(colours[:, 0], colours[:, 1]),
        }
        if (features := found.get("features")) is not None:
            few = readable[: len(features)]
            row["feature_dimensions"], row["feature_spread"] = feature_dimensions(features[few]), feature_spread(features[few])
            row["probe"] = None
            if (clean := found.get("clean features")) is not None:
                row["probe"] = small_probe(clean[few], found["labels"][: len(few)][few].long())
        return row
