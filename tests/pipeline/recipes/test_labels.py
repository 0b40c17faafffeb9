"""Recipe "labels": cross-entropy of AlexNet, samples without a label left out and counted, data sets with other classes refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.config import parse
from pipeline.mapping import ConfigError
from pipeline.model.classifier import LabelNetwork
from pipeline.model.encoder import Encoder
from pipeline.recipes.labels import LabelsRecipe, LabelsSettings
from pipeline.training.held_back.classification import ClassificationJudge
from pipeline.training.labels import LabelUnknown
from pipeline.training.loop import pretrain
from pipeline.training.reporting.flops import flops_per_image
from pipeline.training.supervision.interruption import Interruption
from shards.__main__ import main
from shards.dataset.manifest import Manifest
from tests.datasets import photographs
from tests.shards.trees import tar_of, write_folder

SMALL = LabelsSettings(classes=5, width=6, units=16, dropout=0.0)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pictures, masks without a dropped pixel, and keys."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 227, 227, 3), dtype=torch.uint8, generator=generator)
    return images, torch.zeros(count, 227, 227, dtype=torch.bool), torch.arange(count) * 7 - 3


def test_the_loss_is_cross_entropy_and_samples_without_a_label_are_left_out_and_counted() -> None:
    recipe = LabelsRecipe(SMALL)
    (player,) = recipe.players
    images, masks, keys = batch()
    views = recipe.views(images, masks, torch.tensor([3, -1, -2, 0]), keys)
    losses = player.loss(views, {"classifier": player.network})
    losses.total.sum().backward()
    assert all(parameter.grad is not None for parameter in player.network.parameters())
    with torch.no_grad():
        logits = player.network.double()(recipe.scale.normalise(images).double(), keys).numpy()
    for sample, label in ((0, 3), (3, 0)):
        shifted = logits[sample] - logits[sample].max()
        assert float(losses.total[sample].detach()) == pytest.approx(np.log(np.exp(shifted).sum()) - shifted[label], rel=1e-4)
        assert float(losses.parts["accuracy"][sample]) == (logits[sample].argmax() == label)
    assert losses.total[[1, 2]].tolist() == [0, 0]
    assert losses.parts["unlabelled"].tolist() == [0, 1, 1, 0]
    alone = LabelsRecipe(SMALL).players[0]
    alone.network.load_state_dict(player.network.float().state_dict())
    known = recipe.views(images[[0, 3]], masks[[0, 3]], torch.tensor([3, 0]), keys[[0, 3]])
    alone.loss(known, {"classifier": alone.network}).total.sum().backward()
    for name, parameter in alone.network.named_parameters():
        assert torch.allclose(parameter.grad, player.network.get_parameter(name).grad.float(), atol=1e-5), name


def test_an_evaluation_of_pictures_without_a_label_has_no_figures_and_no_largest_class() -> None:
    judge = ClassificationJudge(recipes.make("labels", SMALL, 0))  # type: ignore[arg-type]
    truth, figures = torch.tensor([2, 2, 1, -1])[:, None], torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    readable = torch.tensor([True, True, True, True])

    def row(truth: torch.Tensor) -> dict[str, Any]:
        return judge.figures({"truth": truth.flatten(), "figures": figures.double()}, readable, lambda *_: {})

    known, unknown = row(truth), row(torch.full_like(truth, -1))
    assert (known["loss"], known["accuracy"], known["unlabelled"]) == (2.0, pytest.approx(1 / 3), 1)
    assert known["baselines"]["largest_class"]["accuracy"] == pytest.approx(2 / 3)
    assert (unknown["unlabelled"], list(unknown["baselines"])) == (4, ["chance"])
    assert np.isnan([unknown["loss"], unknown["accuracy"], unknown["gain"]]).all()


def test_a_few_pictures_are_learned() -> None:
    (player,) = recipes.make("labels", SMALL, 0).players
    images, masks, keys = batch()
    views = LabelsRecipe(SMALL).views(images, masks, torch.arange(4), keys)
    optimiser, means = torch.optim.Adam(player.network.parameters(), 3e-3), []
    for _ in range(20):
        optimiser.zero_grad()
        loss = player.loss(views, {"classifier": player.network}).total.mean()
        loss.backward()
        optimiser.step()
        means.append(float(loss.detach()))
    assert means[0] == pytest.approx(np.log(5), abs=0.3)
    assert means[-1] < 0.5 * means[0]


def test_dropout_follows_the_keys_and_not_the_batch() -> None:
    torch.manual_seed(0)
    network = LabelNetwork(227, 5, units=64, dropout=0.5, width=6).train()
    images, _, keys = batch(3)
    pixels = images.permute(0, 3, 1, 2).float() / 128 - 1
    with torch.no_grad():
        together = network(pixels, keys)
        assert torch.allclose(network(pixels[1:2], keys[1:2])[0], together[1], atol=1e-4)
        assert not torch.allclose(network(pixels, keys + 1), together, atol=1e-3)
        without = network.eval()(pixels, keys)
        assert not torch.allclose(without, together, atol=1e-3)
        assert torch.equal(network(pixels, keys + 1), without), "nothing is dropped in an evaluation"


def products(network: torch.nn.Module, side: int) -> list[int]:
    """Operations of a forward of each product, in order: two for each weight and place."""
    found: list[int] = []

    def note(module: Any, _: Any, output: torch.Tensor) -> None:
        found.append(2 * module.weight.numel() * output.shape[2:].numel())

    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    return found


def test_its_operations_are_counted() -> None:
    recipe = recipes.make("labels", SMALL, 0)
    counted = products(recipe.players[0].network, 227)
    assert len(counted) == 8
    assert flops_per_image(recipe) == 3 * sum(counted) - counted[0], "forward, weights and inputs, but for those of the pictures"


def test_a_named_layout_is_the_encoders() -> None:
    recipe = recipes.make("labels", replace(SMALL, layout="torchvision", width=8, batch_norm=True, batch_norm_group=4), 0)
    assert recipe.unit == 4
    Encoder("torchvision", batch_norm=True, width=8).load_state_dict(recipe.players[0].network.get_submodule("encoder").state_dict())


NAMED = tuple("abcde")
NUMBERED = Manifest((), "numbers", (), {"indexed": ["s3://b/a.tar"]})


@pytest.mark.parametrize(
    ("manifests", "message"),
    [
        ([Manifest((), "s3://bucket/plain")], "the data set s3://bucket/plain has none. Build it with labels"),
        ([Manifest((), "set", NAMED[:3])], "method.classes: 5 is not the number of classes of the data set set, which has 3 classes"),
        (
            [Manifest((), "one", NAMED), Manifest((), "two", NAMED[::-1])],
            "those of two have other names, or another order, than those of one",
        ),
        ([Manifest((), "one", NAMED), NUMBERED], "those of numbers have no names: put a file classnames.txt, a name a line, beside its"),
        (
            [Manifest((), "https://name:secret@host/set", NAMED[:1])],
            "https://.*host/set, which has 1 class: give --method.classes 1",
        ),
    ],
)
def test_data_sets_with_other_classes_are_refused_by_name(manifests: list[Manifest], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        LabelsRecipe(SMALL).check_labels(manifests)
    assert "secret" not in str(caught.value)


def test_data_sets_of_these_classes_are_accepted() -> None:
    LabelsRecipe(SMALL).check_labels([Manifest((), "one", NAMED), Manifest((), "two", NAMED)])
    LabelsRecipe(SMALL).check_labels([NUMBERED])


def numbered(folder: Path, classes: int) -> Path:
    """A data set of eight pictures, whose labels have no names."""
    pictures = enumerate(photographs(8, 32, 32))
    members = {
        name: data for number, each in pictures for name, data in ((f"{number}.jpg", each), (f"{number}.cls", b"%d" % (number % classes)))
    }
    write_folder(folder, {"0.tar": tar_of(members)})
    assert main(["index", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_label_of_no_class_ends_a_run_with_an_error_that_names_it(evaluated: bool, tmp_path: Path) -> None:
    small, large = numbered(tmp_path / "small", 2), numbered(tmp_path / "large", 8)
    words = ["--recipe", "labels", "--data.shards", str(small if evaluated else large), "--run", str(tmp_path / "run")]
    words += [
        "--method.classes",
        "7",
        "--method.width",
        "6",
        "--method.units",
        "8",
        "--training.steps",
        "1",
        "--training.global_batch",
        "8",
    ]
    words += ["--evaluation.shards", str(large)] if evaluated else ["--evaluation.every", "0"]
    found = re.escape(f"method.classes: 7 is too few for the label 7 of row 7 of 0.tar in the data set {large}.")
    with pytest.raises(LabelUnknown, match=rf"{found} Labels are counted from 0: .* 8 or more, in a new run, with another --run, "):
        pretrain(parse(recipes.SETTINGS, [*words, "--monitoring.enabled", "False", "--data.threads", "1"]), Interruption())
