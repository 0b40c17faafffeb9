"""Recipes through the real training: the example of the documents, and a narrow features network."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline import recipes
from pipeline.config import parse
from pipeline.evaluation.export import export_encoder
from pipeline.model.encoder import Encoder
from pipeline.training.loop import pretrain
from pipeline.training.supervision.interruption import Interruption
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_dataset(folder, photographs(8, 240, 250), [8])
    return folder


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The recipe of docs/extending.md, found in a folder as those of pipeline/recipes are."""
    section = (ROOT / "docs" / "extending.md").read_text().partition("\n## A recipe\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "colours.py").write_text(code[1])
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path / "recipes")])
    found = recipes._find()
    monkeypatch.setitem(recipes.RECIPES, "colours", found["colours"])
    monkeypatch.setitem(recipes.SETTINGS, "colours", found["colours"].settings)
    yield "colours"
    del sys.modules["pipeline.recipes.colours"]


def trained(shards: Path, run: Path, recipe: str, *settings: str) -> dict[str, object]:
    """The encoder after two steps, by the name of its tensors."""
    common = ["--training.steps", "2", "--training.global_batch", "2", "--training.pictures", "2", "--monitoring.enabled", "False"]
    words = ["--recipe", recipe, "--data.shards", str(shards), "--run", str(run), "--training.pictures_every", "1", *common, *settings]
    assert pretrain(parse(recipes.SETTINGS, words), Interruption()).finished
    target = run / "encoder.safetensors"
    assert "after 2 steps" in export_encoder(str(run), target)
    return load_file(target)


def test_the_recipe_of_the_documents_trains_and_its_encoder_is_exported(shards: Path, colours: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    weights = trained(shards, run, colours, "--method.width", "6")
    Encoder("caffenet", width=6).load_state_dict(weights)
    assert len(list(run.rglob("*.png"))) == 2


def test_a_narrow_network_trains_and_its_encoder_is_exported(shards: Path, tmp_path: Path) -> None:
    settings = ["--method.layout", "torchvision", "--method.width", "8", "--method.adversarial_weight", "0.001"]
    weights = trained(shards, tmp_path / "run", "features", *settings, "--method.batch_norm_group", "2")
    Encoder("torchvision", width=8).load_state_dict(weights)
