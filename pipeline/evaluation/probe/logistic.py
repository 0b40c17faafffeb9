"""Logistic regression over all classes at once, by scikit-learn (solver lbfgs), with a penalty on squared weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pipeline.evaluation.probe.choice import Outcome, best_of, end_of_grid
from pipeline.evaluation.probe.coordinates import Coordinates
from pipeline.evaluation.probe.folds import Fold

PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""Penalties that are tried, as multiples of the number of features: scikit-learn's `C` is 1 over such a number times the features."""
TOLERANCE = 1e-6
"""Largest component of the gradient of the mean loss at which the solver stops."""
MOST_ITERATIONS = 1000


def classify(
    pictures: Coordinates, labels: NDArray[np.int64], classes: int, inner: Sequence[Fold], penalties: Sequence[float] = PENALTIES
) -> Outcome:
    """Classifies the test pictures, with the penalty whose log loss over the inner test folds is smallest.

    Args:
        pictures: coordinates of the pictures.
        labels: int64 (n,), classes of the training pictures; every class is in every fold.
        classes: number of classes.
        inner: divisions of the training pictures.
        penalties: penalties to try, ascending, as multiples of the number of features.
    """
    learnt, asked = pictures.training.cpu().numpy(), pictures.test.cpu().numpy()
    errors, right, judged = np.zeros(len(penalties)), np.zeros(len(penalties)), 0
    for fold in inner:
        model = _model()
        truth = labels[fold.test]
        for place in reversed(range(len(penalties))):  # from the strongest on, because each solution is near the one before
            _fit(model, penalties[place] * pictures.features, learnt[fold.training], labels[fold.training])
            likelihoods = model.predict_proba(learnt[fold.test])
            errors[place] += log_loss(truth, likelihoods, labels=np.arange(classes), normalize=False)
            right[place] += int((likelihoods.argmax(1) == truth).sum())
        judged += len(truth)
    best = best_of(errors.tolist())
    model = _fit(_model(), penalties[best] * pictures.features, learnt, labels)
    predictions = model.predict(asked).astype(np.int64)
    return Outcome(predictions, penalties[best], float(right[best]) / judged, end_of_grid(errors.tolist()))


def _model() -> LogisticRegression:
    return LogisticRegression(solver="lbfgs", tol=TOLERANCE, max_iter=MOST_ITERATIONS, warm_start=True)


def _fit(model: LogisticRegression, penalty: float, learnt: NDArray[np.float64], labels: NDArray[np.int64]) -> LogisticRegression:
    model.set_params(C=1 / penalty)
    with warnings.catch_warnings():
        # a weak penalty on pictures that can be told apart has its solution very far away; such a penalty is not chosen
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(learnt, labels)
