"""The judge of an evaluation: the figures that one kind of recipe has on held-back pictures, beside those of its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from pipeline.recipes.player import Networks, Views

Measure = Callable[[Views, range], Mapping[str, Tensor]]
"""Function of a chunk's views and of its range of pictures that gives rows of tables, one a picture, by the tables' names."""
MeasureAll = Callable[[Measure, Sequence[str], int], Mapping[str, Tensor]]
"""Function that measures all chunks on all ranks: a measure, the names of its tables and the numbers of a row in; whole tables out."""


class Judge(Protocol):
    """Figures of a recipe.

    Attributes:
        player: name of the player whose network is judged.
    """

    player: str

    def answer(self, views: Views, networks: Networks) -> Tensor:
        """Runs the network, without gradient and under autocast: one row a picture."""
        ...

    def rows(self, views: Views, answer: Tensor) -> Mapping[str, Tensor]:
        """Measures a chunk: rows of tables, one a picture, by the tables' names."""
        ...

    def figures(self, found: Mapping[str, Tensor], readable: Tensor, measure_all: MeasureAll) -> dict[str, Any]:
        """Computes the figures of a row of `evaluation.jsonl`, with `baselines` and `gain`; every rank must call it.

        Args:
            found: whole tables, those of `rows` among them.
            readable: bool (pictures,).
            measure_all: measures all pictures once more, without the networks.
        """
        ...

    def spread(self, found: Mapping[str, Tensor], readable: Tensor) -> dict[str, Any]:
        """Computes the spread of the outputs over the pictures, where the recipe's outputs have one; arguments as in `figures`."""
        ...
