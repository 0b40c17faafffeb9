"""`launch/evaluate.py probe`: from pictures to tables, figures and sentences, with encoders of an eighth of the width."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch.evaluate import main
from pipeline.evaluation.encoder import layer_outputs, layers, read_encoder
from pipeline.evaluation.probe.features import Source, extracted, grid_side, pooled
from pipeline.evaluation.probe.pictures import ProbeError
from shards.build.build import BuildRequest, build
from shards.build.picture import PictureRules
from shards.build.plan import PlanSettings
from tests.pipeline.evaluation.runs import write_run

COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}
EACH = 12


def write_pictures(folder: Path) -> None:
    """A folder for each colour, with noise of that mean colour: the mean colour alone tells the classes apart."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            pixels = random.normal(colour, 60, size=(24, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a run whose weights were drawn, another one that is at its random start, and labelled pictures."""

    def fill(folder: Path) -> None:
        write_run(folder / "drawn", "caffenet")
        write_run(folder / "start", "caffenet", trained=False)
        write_run(folder / "batch norm", "batch norm")
        write_pictures(folder / "pictures")
        with tarfile.open(folder / "pictures.tar", "w") as tar:
            tar.add(folder / "pictures", arcname=".")

    return made_once("probe", fill)


def probe(made: Path, run: str, labelled: str, out: Path, *options: str) -> dict[str, Any]:
    """Probes quickly: two layers, three folds."""
    quick = ("--layers", "pool1", "pool5", "--folds", "3", "--knn", "1", "3", "--device", "cpu", "--out", str(out))
    assert main(["probe", str(made / run), "--labelled", str(made / labelled), *quick, *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def accuracies(found: dict[str, Any], classifier: str) -> dict[tuple[str, str], float]:
    return {(row["features"], row["layer"]): row["accuracy"][0] for row in found["accuracies"] if row["classifier"] == classifier}


def test_a_folder_of_few_pictures_gets_figures_and_a_warning(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = probe(made, "drawn", "pictures", tmp_path / "out.json", "--random-starts", "2", "--layers", "pool5", "--folds", "2")
    said = capsys.readouterr().out
    assert f"{3 * EACH} pictures, 3 classes; naming the largest class is right on 33.3 %" in said
    assert f"{3 * EACH} pictures of 3 classes are too few for a verdict" in said
    assert found["pictures"]["classes"] == {"blue": EACH, "green": EACH, "red": EACH}
    assert {row["verdict"] for row in found["differences"]} == {"too few pictures"}
    assert "better" not in said
    for classifier in ("ridge", "logistic", "neighbours"):
        shares = accuracies(found, classifier)
        starts = [f"random start, seed {seed}" for seed in (3, 4)]
        layers = [(name, layer) for name in ("encoder", *starts) for layer in ("pool5", "chosen layer")]
        assert set(shares) == {*layers, ("mean colour", ""), ("pixels 16 x 16", "")}
        assert shares["mean colour", ""] == 1.0
        assert f"by {classifier}, the encoder does not beat the mean colour of a picture" in said
    for title in ("Ridge", "Logistic regression", "k-nearest neighbours"):
        assert title in said


def test_an_encoder_at_its_random_start_differs_in_nothing_and_a_tar_gives_the_folders_figures(made: Path, tmp_path: Path) -> None:
    quick = ("--classifiers", "ridge", "neighbours")
    folder = probe(made, "start", "pictures", tmp_path / "folder.json", *quick)
    for classifier in ("ridge", "neighbours"):
        shares = accuracies(folder, classifier)
        for layer in ("pool1", "pool5", "chosen layer"):
            assert shares["encoder", layer] == shares["random start, seed 3", layer]
    tar = probe(made, "start", "pictures.tar", tmp_path / "tar.json", *quick)
    assert {**tar, "labelled": ""} == {**folder, "labelled": ""}
    assert tar["labelled"].endswith("pictures.tar")


def test_a_data_set_of_shards_and_another_seed(made: Path, tmp_path: Path) -> None:
    rules = PlanSettings(PictureRules(resize=None), shard_size=10)
    build(BuildRequest(str(made / "pictures"), str(tmp_path / "shards"), rules, quiet=True))
    quick = ("--classifiers", "neighbours", "--limit", "9", "--seed", "5")
    found = probe(made, "start", str(tmp_path / "shards"), tmp_path / "out.json", *quick)
    assert found["pictures"]["classes"] == {"blue": 9, "green": 9, "red": 9}
    assert found["settings"]["seed"] == 5
    assert found["settings"]["test_folds"] == [9, 9, 9]
    assert "at most 9 pictures" in found["pictures"]["notes"][0]
    assert accuracies(found, "neighbours")["mean colour", ""] == 1.0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none/out.json", "its folder does not exist"),
        (".", "is not a file that can be replaced"),
        ("s3://b/out.json", "is a URL, not a path"),
    ],
)
def test_figures_that_could_not_be_written_are_refused_before_they_are_made(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "no run", "--labelled", "no pictures", "--out", place]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_can_not_be_decoded_are_named_and_left_out(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder)
    (folder / "blue" / "00.png").write_bytes(b"no picture")
    for number in range(2, EACH):
        (folder / "green" / f"{number:02d}.png").write_bytes(b"")
    found = probe(made, "start", str(folder), tmp_path / "out.json", "--classifiers", "neighbours")
    assert found["pictures"]["classes"] == {"blue": EACH - 1, "red": EACH}
    said = capsys.readouterr().out
    assert "note: 11 pictures could not be decoded, and left out: numbers 0, 14, 15" in said
    assert "green (2)" in said
    assert accuracies(found, "neighbours")["mean colour", ""] == 1.0


def test_what_can_not_be_probed_is_explained(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "a.png")
    cases = {
        (str(made / "start"), str(tmp_path / "flat")): "its pictures have no labels",
        (str(made / "start"), str(tmp_path / "none")): "there is no such file or folder",
        (str(tmp_path), str(made / "pictures")): "no checkpoint that verifies",
        (str(made / "start"), str(made / "pictures"), "--folds", "1"): "--folds 1: give 2 or more",
        (str(made / "start"), str(made / "pictures"), "--knn", "5", "1"): "ascending",
        (str(made / "start"), str(made / "pictures"), "--folds", "13"): "two classes with 13 pictures or more",
        (str(made / "start"), str(made / "pictures"), "--layers", "pool9"): "no layer 'pool9'",
        (str(made / "start"), str(made / "pictures"), "--scratch", str(tmp_path / "nowhere")): "nowhere",
        (str(made / "start"), str(made / "pictures"), "--device", "abacus"): "--device abacus",
    }
    for (run, labelled, *options), words in cases.items():
        assert main(["probe", run, "--labelled", labelled, *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert words in error


def test_layers_are_pooled_to_about_nine_thousand_values_as_published() -> None:
    # maps and side of AlexNet's layers, and the side of Zhang et al.
    for maps, side, expected in (
        (96, 55, 10),
        (256, 27, 6),
        (384, 13, 5),
        (256, 13, 6),
        (256, 6, 6),
        (32, 6, 6),
        (4000, 1, 1),
        (64, 55, 12),
    ):
        assert grid_side(maps, side) == expected
    outputs = torch.arange(2 * 256 * 36, dtype=torch.float32).view(2, 256, 6, 6)
    assert torch.equal(pooled(outputs), outputs.flatten(1))  # nothing to pool
    assert torch.allclose(pooled(torch.full((1, 96, 55, 55), 2.0)), torch.full((1, 9600), 2.0))


def test_features_are_the_pooled_outputs_and_the_scratch_files_go(made: Path, tmp_path: Path) -> None:
    from launch.evaluate import SourcePictures

    encoder = read_encoder(made / "drawn")
    network, pictures = encoder.module(), SourcePictures(str(made / "pictures"), {}, (), None)
    numbers, cpu = np.array([0, 5, 20]), torch.device("cpu")
    arguments = (encoder.facts.transform.picture, [Source("encoder", network)], layers(network), tmp_path, 0, cpu, lambda _: None)
    with extracted(pictures, numbers, *arguments) as found:
        opened = [Image.open(made / "pictures" / name) for name in ("blue/00.png", "blue/05.png", "green/08.png")]
        inputs = torch.cat([encoder.facts.transform.picture(picture) for picture in opened])
        with torch.no_grad():
            expected = layer_outputs(network, inputs, layers(network))
        for layer, outputs in expected.items():
            table = found.tables["encoder", layer]
            assert np.allclose(table.read(0, 3), pooled(outputs).numpy(), rtol=1e-4, atol=1e-5)
        assert np.allclose(found.tables["mean colour", ""].read(0, 3), inputs.mean((2, 3)).numpy(), atol=1e-4)
        assert found.tables["pixels 16 x 16", ""].width == 768
    assert not list(tmp_path.iterdir())


def test_statistics_of_batch_norm_are_those_of_the_pictures(made: Path, tmp_path: Path) -> None:
    found = probe(made, "batch norm", "pictures", tmp_path / "out.json", "--classifiers", "ridge", "--layers", "relu1")
    shares = accuracies(found, "ridge")
    # the run's own statistics were drawn at random; with those of the pictures the first layer still sees colours
    assert shares["encoder", "relu1"] > 0.6
    assert shares["random start, seed 3", "relu1"] > 0.6


def test_features_that_do_not_fit_the_disk_are_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.evaluate import SourcePictures

    encoder = read_encoder(made / "drawn")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    pictures = SourcePictures(str(made / "pictures"), {}, (), None)
    arguments = (encoder.facts.transform.picture, [Source("encoder", encoder.module())], ["pool1"], tmp_path, 0, torch.device("cpu"))
    with pytest.raises(ProbeError, match="--scratch"), extracted(pictures, np.arange(3), *arguments, lambda _: None):
        pass
    assert not list(tmp_path.iterdir())
