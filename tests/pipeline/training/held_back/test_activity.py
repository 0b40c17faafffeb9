"""Dead maps, spreads and dimensions, on values whose answer is known; the small probe against scikit-learn."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.model.features_network import FeaturesNetwork
from pipeline.training.held_back.activity import colour_spread, dead_maps, feature_dimensions, feature_spread, of_first_patches, watched
from pipeline.training.held_back.small_probe import NEIGHBOURS, small_probe


def test_a_map_is_dead_if_it_is_the_same_everywhere() -> None:
    highest = torch.tensor([[0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 3.0, 5.0]])  # two parts of the pictures, four maps
    lowest = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 3.0, 1.0]])
    assert dead_maps(highest, lowest) == 2, "one that is zero and one that is constant; the third differs between the parts"


def test_every_activation_and_the_encoders_output_are_watched_and_hooks_are_removed() -> None:
    network = FeaturesNetwork(width=12).eval()
    with torch.no_grad():
        network.encoder.conv3.weight.zero_()
        network.encoder.conv3.bias.fill_(-1.0)
        with watched(network) as found:
            network(torch.randn(3, 3, 227, 227), torch.zeros(3, dtype=torch.int64))
    assert dead_maps(found.highest["relu3"][None], found.lowest["relu3"][None]) == 48
    assert dead_maps(found.highest["relu1"][None], found.lowest["relu1"][None]) == 0
    assert "decoder.relu4" in found.highest
    assert found.features is not None
    assert found.features.shape == (3, 32 * 36)
    assert not any(module._forward_hooks for module in network.modules())


def test_dimensions_and_spread_of_known_features() -> None:
    circle = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert feature_dimensions(circle) == pytest.approx(2.0)
    assert feature_dimensions(circle * torch.tensor([1.0, 0.0])) == pytest.approx(1.0)
    assert feature_dimensions(torch.ones(4, 5)) == 1.0
    assert feature_spread(torch.ones(4, 5)) == 0.0
    assert feature_spread(circle) == pytest.approx(1.0)
    assert feature_spread(torch.zeros(4, 5)) == 0.0


def test_colour_spread_compares_with_the_truth() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert colour_spread(truth / 2, truth) == pytest.approx(0.5)
    assert colour_spread(torch.full((2, 3), 0.3), truth) == 0.0
    assert colour_spread(truth, torch.zeros(2, 3)) == 1.0, "pictures of one colour can't be told apart"


def test_the_small_probe_agrees_with_scikit_learn(draw: random.Random) -> None:
    numbers = np.random.default_rng(draw.randrange(2**32))
    labels = np.repeat(np.arange(3), 15)
    features = numbers.normal(size=(45, 60)) + 0.8 * numbers.normal(size=(3, 60))[labels]
    found = small_probe(torch.from_numpy(features), torch.from_numpy(labels))
    assert found is not None
    assert (found["classes"], found["chance"]) == (3, pytest.approx(1 / 3))
    standard = StandardScaler().fit_transform(features)
    targets = np.eye(3)[labels]
    penalty = np.trace(standard @ standard.T) / 45
    # the intercept is the mean over all pictures, which the closed form does not leave one out of
    predicted = cross_val_predict(Ridge(penalty, fit_intercept=False), standard, targets - targets.mean(0), cv=LeaveOneOut())
    assert found["ridge"] == pytest.approx(((predicted + targets.mean(0)).argmax(1) == labels).mean())
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = cross_val_predict(KNeighborsClassifier(NEIGHBOURS, metric="cosine"), unit, labels, cv=LeaveOneOut())
    assert found["knn"] == pytest.approx((nearest == labels).mean(), abs=0.1), "equal votes may be decided otherwise"
    assert found["knn"] > 0.5


def test_a_probe_without_enough_labels_says_nothing() -> None:
    features = torch.randn(20, 4)
    assert small_probe(features, torch.full((20,), -1)) is None
    assert small_probe(features, torch.zeros(20, dtype=torch.int64)) is None
    assert small_probe(features, torch.arange(20)) is None
    assert small_probe(features * torch.nan, torch.arange(20) % 2) is None
    same = small_probe(torch.ones(20, 4), torch.arange(20) % 2)
    assert same is not None
    assert same["ridge"] == pytest.approx(0.5), "features that don't vary give the guess"


def test_a_picture_does_not_predict_its_own_label(draw: random.Random) -> None:
    """Groups of six pictures with two labels, three each: without itself, a picture's neighbours are two of its own and three others."""
    numbers = np.random.default_rng(draw.randrange(2**32))
    centres = np.eye(8).repeat(6, axis=0)
    features = centres + 1e-3 * numbers.normal(size=centres.shape)
    grouped = small_probe(torch.from_numpy(features), torch.arange(48) // 3 % 2)
    assert grouped is not None
    assert grouped["knn"] == 0.0
    # as many values as ridge regression needs to learn any labels by heart
    noise = small_probe(torch.from_numpy(numbers.normal(size=(60, 600))), torch.from_numpy(numbers.permutation(np.arange(60) % 2)))
    assert noise is not None
    assert noise["ridge"] < 0.8


def test_of_the_patches_of_a_picture_the_first_one_counts() -> None:
    features = torch.arange(12.0).view(6, 2)
    assert torch.equal(of_first_patches(features, 3), features[::2])
    assert torch.equal(of_first_patches(features, 6), features)
