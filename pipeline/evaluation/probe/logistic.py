"""Logistic regression over all classes at once, by scikit-learn (solver lbfgs), with a penalty on squared weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.probe.choice import Outcome, best_of, end_of_grid
from pipeline.evaluation.probe.coordinates import Coordinates
from pipeline.evaluation.probe.folds import Fold

PENALTIES = tuple(10.0**power for power in range(-6, 4))
"""Penalties that are tried, as multiples of the number of features: scikit-learn's `C` is 1 over such a number times the features."""
TOLERANCE = 1e-6
"""Largest component of the gradient of the mean loss at which the solver stops. At scikit-learn's 1e-4 two pictures in thirty were
classified otherwise than at the solution; that is enough to choose a penalty by."""
_TOLERANCE_OF_CHOICE = 1e-4
MOST_ITERATIONS = 1000
_SMALLEST = float(np.finfo(np.float64).tiny)
_PATIENCE = 2  # penalties in a row that gain nothing, after which weaker ones, which take longest, are not tried
_GAIN = 1e-3  # least gain that counts, in nats a picture: classes that can be told apart gain a little at every weaker penalty for ever


def classify(pictures: Coordinates, labels: NDArray[np.int64], inner: Sequence[Fold], penalties: Sequence[float] = PENALTIES) -> Outcome:
    """Classifies the test pictures, with the penalty whose log loss over the inner test folds is smallest.

    Penalties are tried from the strongest on, until two in a row gain less than 0.001 nats a picture.

    Args:
        pictures: coordinates of the pictures.
        labels: int64 (n,), classes of the training pictures, from 0 up; every class is in every fold.
        inner: divisions of the training pictures.
        penalties: penalties to try, ascending, as multiples of the number of features.
    """
    learnt, asked = pictures.training.cpu().numpy(), pictures.test.cpu().numpy()
    models = [_model(_TOLERANCE_OF_CHOICE) for _ in inner]
    errors, shares, judged = list[float](), list[float](), sum(len(fold.test) for fold in inner)
    for penalty in reversed(penalties):
        error, right = 0.0, 0
        for model, fold in zip(models, inner, strict=True):  # each solution is near the one for the penalty before
            truth = labels[fold.test]
            likelihoods = _fit(model, penalty * pictures.features, learnt[fold.training], labels[fold.training]).predict_proba(
                learnt[fold.test]
            )
            # scikit-learn's log_loss checks its arguments for longer than a small classifier is fitted
            error -= float(np.log(np.maximum(likelihoods[np.arange(len(truth)), truth], _SMALLEST)).sum())
            right += int((likelihoods.argmax(1) == truth).sum())
        errors.append(error / judged)
        shares.append(right / judged)
        if len(errors) > _PATIENCE and min(errors[-_PATIENCE:]) > min(errors[:-_PATIENCE]) - _GAIN:
            break
    best = best_of(errors)
    chosen = penalties[len(penalties) - 1 - best]
    predictions = _fit(_model(TOLERANCE), chosen * pictures.features, learnt, labels).predict(asked).astype(np.int64)
    return Outcome(predictions, chosen, shares[best], end_of_grid(errors[::-1], _GAIN))


def _model(tolerance: float) -> LogisticRegression:
    return LogisticRegression(solver="lbfgs", tol=tolerance, max_iter=MOST_ITERATIONS, warm_start=True)


def _fit(model: LogisticRegression, penalty: float, learnt: NDArray[np.float64], labels: NDArray[np.int64]) -> LogisticRegression:
    model.set_params(C=1 / penalty)
    with warnings.catch_warnings():
        # a weak penalty on pictures that can be told apart has its solution very far away; such a penalty is not chosen
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(learnt, labels)
