"""The evaluation of the networks on held-back pictures with fixed crops and masks; a judge (`judge`) has the figures of its kind of recipe.

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

from pipeline.config import TrainingConfig
from pipeline.recipes.player import ClassifyingRecipe, Networks, PaintingRecipe, Paintings, Recipe, Views, WholeViews
from pipeline.stream.fixed import FixedChoice, FixedSamples
from pipeline.stream.read.samples import BadSample
from pipeline.training.engine.engine import Engine, evaluating
from pipeline.training.held_back.activity import dead_maps, feature_dimensions, feature_spread, of_first_patches, watched
from pipeline.training.held_back.classification import ClassificationJudge
from pipeline.training.held_back.judge import Judge, Measure
from pipeline.training.held_back.painting import PaintingJudge
from pipeline.training.held_back.sheet import Sheet, sheet_of
from pipeline.training.held_back.small_probe import small_probe
from pipeline.training.held_back.table import Tables
from pipeline.training.labels import refuse_labels
from pipeline.training.ranks.world import World

CHUNK = 32
"""Pictures that go through the networks at once. The last bits of figures depend on it."""
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
        self._judge = _judge_of(recipe)
        self._network = next(each for each in engines if each.player.name == self._judge.player).network
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
            LabelUnknown: a label is that of no class of the recipe.
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
        row: dict[str, Any] = {"pictures": int(readable.sum()), "choice": self.digest}
        row |= self._judge.figures(found, readable, self._measured)
        row |= self._state(found, readable)
        row["seconds"] = round(time.monotonic() - began, 3)
        return row

    def sheet(self) -> Sheet | None:
        """Paints `training.pictures` pictures for a grid, the same in every grid of a run; every rank must call it.

        Returns:
            The pictures, on rank 0; None on the other ranks, if none can be read, and if the recipe paints none.
        """
        if not isinstance(self._judge, PaintingJudge):
            return None
        parts: list[Paintings] = []
        readable: list[Tensor] = []
        with evaluating(self._engines) as networks:
            for chunk in range(-(-min(self._training.pictures, self._choice.count) // CHUNK)):
                samples = self._samples[chunk if self._world.is_first else 0].result()
                views = self._views(samples)
                parts.append(self._judge.recipe.paintings(views, self._answer(views, networks)))
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
        if self._choice.labelled:
            ids = [self._choice.sample_id(number) for number in self._chunks[chunk]]
            refuse_labels(self._recipe, samples.labels, ids, self._choice.datasets)
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

    def _answer(self, views: Views, networks: Networks) -> Tensor:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._training.precision == "bf16"):
            return self._judge.answer(views, networks)

    def _measure(self, chunk: int, networks: Networks, tables: Tables) -> None:
        """Puts a chunk's rows into the tables; of -1, which a rank without any chunk has, nothing but zeros."""
        samples = self._samples[max(chunk, 0)].result()
        views, start = self._views(samples), self._chunks[max(chunk, 0)].start

        def put(name: str, first: int, values: Tensor, rows: int | None = None) -> None:
            tables.put(name, first, torch.zeros_like(values) if chunk < 0 else values, rows)

        def put_features(name: str, features: Tensor | None) -> None:
            if features is not None:
                rows = min(_MOST_FEATURES, self._choice.count)
                kept = of_first_patches(features, len(samples.keys))[: max(0, rows - start)]
                put(name, start if len(kept) else 0, kept, rows)

        with watched(self._network) as activity:
            answer = self._answer(views, networks)
            for edge, maps in (("highest", activity.highest), ("lowest", activity.lowest)):
                for layer, values in maps.items():
                    put(f"{edge} {layer}", max(chunk, 0), values[None], len(self._chunks))
            put_features("features", activity.features)
            if self._choice.labelled:
                self._answer(self._whole(samples), networks)
                put_features("clean features", activity.features)
        put("readable", start, samples.readable)
        put("labels", start, samples.labels)
        for name, values in self._judge.rows(views, answer).items():
            put(name, start, values)

    def _whole(self, samples: FixedSamples) -> Views:
        """The views of pictures from which nothing is dropped."""
        images, keys = samples.images.to(self._world.device), samples.keys.to(self._world.device)
        if isinstance(self._recipe, WholeViews):
            return self._recipe.whole(images, keys)
        return self._recipe.views(images, torch.zeros_like(samples.masks, device=self._world.device), None, keys)

    def _measured(self, measure: Measure, names: Sequence[str], columns: int) -> Mapping[str, Tensor]:
        """Puts together what is measured of every picture's views, without the networks; every rank must call it.

        Args:
            measure: function of a chunk's views and of its range of pictures that gives rows of tables.
            names: names of these tables.
            columns: numbers of a row.
        """
        tables = Tables(self._choice.count)
        for name in names:
            tables.put(name, 0, torch.zeros(0, columns, dtype=torch.float64))
        with torch.no_grad():
            for chunk in self._own:
                own = self._chunks[chunk]
                for name, values in measure(self._views(self._samples[chunk].result()), own).items():
                    tables.put(name, own.start, values)
        return tables.sum(self._world)

    def _state(self, found: Mapping[str, Tensor], readable: Tensor) -> dict[str, Any]:
        """The state of maps, outputs and features, and the small probe."""
        layers = sorted(name.removeprefix("highest ") for name in found if name.startswith("highest "))
        row: dict[str, Any] = {
            "maps": {layer: found[f"highest {layer}"].shape[1] for layer in layers},
            "dead_maps": {layer: dead_maps(found[f"highest {layer}"], found[f"lowest {layer}"]) for layer in layers},
            **self._judge.spread(found, readable),
        }
        if (features := found.get("features")) is not None:
            few = readable[: len(features)]
            row["feature_dimensions"], row["feature_spread"] = feature_dimensions(features[few]), feature_spread(features[few])
            row["probe"] = None
            if (clean := found.get("clean features")) is not None:
                row["probe"] = small_probe(clean[few], found["labels"][: len(few)][few].long())
        return row


def _judge_of(recipe: Recipe) -> Judge:
    if isinstance(recipe, PaintingRecipe):
        return PaintingJudge(recipe)
    if isinstance(recipe, ClassifyingRecipe):
        return ClassificationJudge(recipe)
    raise TypeError(f"the recipe {recipe.name} neither paints nor classifies: pipeline/recipes/player.py says what it must have")
