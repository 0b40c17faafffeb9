"""Ridge classification: least squares on targets of +1 for a picture's class and -1 for all others, with a penalty on squared weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.probe.choice import Outcome, best_of, end_of_grid
from pipeline.evaluation.probe.coordinates import Coordinates
from pipeline.evaluation.probe.folds import Fold

PENALTIES = tuple(10.0**power for power in range(-3, 6))
"""Penalties that are tried, as multiples of the number of features: scikit-learn's `alpha` is such a number times the features."""


def targets(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Targets of a least-squares classifier, float64 (n, classes): 1 for the class, -1 for the others."""
    found = torch.full((len(labels), classes), -1.0, dtype=torch.float64)
    found[torch.arange(len(labels)), torch.from_numpy(labels)] = 1.0
    return found


def scores(learnt: Tensor, wanted: Tensor, asked: Tensor, alphas: Sequence[float]) -> list[Tensor]:
    """Fits a ridge with an intercept for each penalty, and applies it.

    Args:
        learnt: float64 (n, p), coordinates to learn from.
        wanted: float64 (n, classes), their targets.
        asked: float64 (m, p), coordinates to apply the fit to.
        alphas: penalties on the squared weights; the intercept has none.

    Returns:
        A score of each class, float64 (m, classes), for each penalty.
    """
    centre, level = learnt.mean(0), wanted.mean(0)
    # the centre is taken off the products instead of the coordinates, which would have to be copied for it
    products = learnt.T @ learnt - len(learnt) * torch.outer(centre, centre)
    against = learnt.T @ wanted - len(learnt) * torch.outer(centre, level)
    found = []
    for alpha in alphas:
        penalised = products.clone()
        penalised.diagonal().add_(alpha)
        weights = torch.cholesky_solve(against, torch.linalg.cholesky(penalised))
        found.append(asked @ weights + (level - centre @ weights))
    return found


def classify(
    pictures: Coordinates, labels: NDArray[np.int64], classes: int, inner: Sequence[Fold], penalties: Sequence[float] = PENALTIES
) -> Outcome:
    """Classifies the test pictures, with the penalty whose squared error over the inner test folds is smallest.

    Args:
        pictures: coordinates of the pictures.
        labels: int64 (n,), classes of the training pictures.
        classes: number of classes.
        inner: divisions of the training pictures.
        penalties: penalties to try, ascending, as multiples of the number of features.
    """
    wanted = targets(labels, classes).to(pictures.training.device)
    alphas = [penalty * pictures.features for penalty in penalties]
    errors, right, judged = np.zeros(len(alphas)), np.zeros(len(alphas)), 0
    for fold in inner:
        found = scores(pictures.training[fold.training], wanted[fold.training], pictures.training[fold.test], alphas)
        truth = wanted[fold.test]
        errors += [float((each - truth).square().sum()) for each in found]
        right += [int((each.argmax(1) == truth.argmax(1)).sum()) for each in found]
        judged += len(fold.test)
    best = best_of(errors.tolist())
    (final,) = scores(pictures.training, wanted, pictures.test, [alphas[best]])
    predictions = final.cpu().numpy().argmax(1)
    return Outcome(predictions, penalties[best], float(right[best]) / judged, end_of_grid(errors.tolist()))
