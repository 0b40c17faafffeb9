"""A small probe of frozen features while a run goes on: how well do some hundred labelled pictures predict each other's labels.

It follows one run over its steps; `launch/evaluate.py probe` compares runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 5


def small_probe(features: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Predicts the label of each picture from all others, by k-nearest-neighbours and by ridge regression.

    Args:
        features: float (n, d).
        labels: int64 (n,), -1 where unknown.

    Returns:
        `classes`, `chance` (fraction of the largest class), and the fractions of right predictions of `knn` and `ridge`; None for fewer
        than two classes, or fewer than two pictures a class on average.
    """
    known = labels >= 0
    features, labels = features[known].double(), labels[known]
    classes, numbers = torch.unique(labels, return_inverse=True)
    if len(classes) < 2 or len(labels) < max(2 * len(classes), NEIGHBOURS + 1) or not features.isfinite().all():
        return None
    return {
        "classes": len(classes),
        "chance": float(torch.bincount(numbers).max() / len(numbers)),
        "knn": float((_nearest(features, numbers, len(classes)) == numbers).double().mean()),
        "ridge": float((_ridge(features, numbers, len(classes)) == numbers).double().mean()),
    }


def _nearest(features: Tensor, numbers: Tensor, classes: int) -> Tensor:
    """The class most frequent among the nearest pictures by cosine; of classes equally frequent, the one whose pictures are nearer."""
    unit = functional.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    near = similarity.topk(NEIGHBOURS, dim=1)
    votes = functional.one_hot(numbers[near.indices], classes).double()
    nearness = torch.linspace(1, 0.5, NEIGHBOURS, dtype=torch.float64) * 1e-3  # decides between equal votes only
    found: Tensor = (votes * (1 + nearness)[None, :, None]).sum(1).argmax(1)
    return found


def _ridge(features: Tensor, numbers: Tensor, classes: int) -> Tensor:
    """Predictions of ridge regression with the picture left out, on standardised features, at a penalty of the features' mean square."""
    deviation = features.std(0, correction=0)
    standard = (features - features.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    products = standard @ standard.T
    penalty = products.trace() / len(products)
    if not penalty > 0:
        return torch.zeros_like(numbers)
    targets = functional.one_hot(numbers, classes).double()
    centred = targets - targets.mean(0)
    hat = torch.linalg.solve(products + penalty * torch.eye(len(products), dtype=torch.float64), products)
    own = hat.diagonal()[:, None]
    left_out = (hat @ centred - own * centred) / (1 - own)  # leave-one-out predictions in closed form
    found: Tensor = (left_out + targets.mean(0)).argmax(1)
    return found
