"""A finished encoder is loaded from a file, a folder or a run, computes what the trained network computes, and is read layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import EllipsisType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from launch.local.object_store import SeaweedFS
from pipeline import recipes
from pipeline.config import parse
from pipeline.evaluation.encoder import EncoderInvalid, layer_outputs, layers, load_encoder, random_start, read_encoder
from pipeline.evaluation.export import export_encoder
from pipeline.evaluation.model_card import model_card
from pipeline.training.checkpoint.store import read
from pipeline.training.loop import pretrain
from pipeline.training.supervision.interruption import Interruption
from shards.__main__ import main
from shards.store import Store
from tests.datasets import photographs
from tests.pipeline.evaluation.runs import FINGERPRINT, KINDS, pictures, write_run, write_scores


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An exported file of an eighth of caffenet, whose metadata a test may change."""
    write_run(tmp_path / "run", "caffenet")
    export_encoder(str(tmp_path / "run"), tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_encoder_computes_what_the_trained_network_computes(kind: str, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", kind)
    export_encoder(str(tmp_path / "run"), tmp_path / "encoder.safetensors")
    for path in (tmp_path / "encoder.safetensors", tmp_path / "run", tmp_path / "run" / "checkpoints"):
        module, transform = load_encoder(path)
        assert not module.training
        images = transform(pictures(transform.side))
        with torch.no_grad():
            expected, found = trained(images.clone()), module(images)
        assert found.shape[1:] == read_encoder(path).facts.output
        assert torch.allclose(found, expected, atol=1e-6, rtol=0)
        assert expected.std() > 0.01  # an encoder of zeros would agree with anything


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_read_as_a_hook_on_a_copy_sees_it(kind: str, tmp_path: Path) -> None:
    write_run(tmp_path, kind)
    module, transform = load_encoder(tmp_path)
    images = transform(pictures(transform.side))
    seen: dict[str, torch.Tensor] = {}
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: seen.setdefault(name, output.clone()))
    with torch.no_grad():
        last = module(images)
        found = layer_outputs(module, images, [name for name, _ in module.named_children()])
    assert list(found) == list(seen)
    assert all(found[name].equal(seen[name]) for name in seen)
    assert list(found.values())[-1].equal(last)
    assert (found["conv2"] < 0).any()
    assert layers(module)[0] == "relu1"
    assert "conv2" not in layers(module)
    with pytest.raises(EncoderInvalid, match=r"no layer 'rely2'. Did you mean 'relu2'\?"):
        layer_outputs(module, images, ["rely2"])


def test_a_layer_that_works_in_place_does_not_change_the_output_of_the_one_before() -> None:
    chain = nn.Sequential()
    chain.add_module("conv1", nn.Conv2d(3, 4, 3))
    chain.add_module("relu1", nn.LeakyReLU(0.2, inplace=True))
    found = layer_outputs(chain, torch.randn(2, 3, 8, 8), ["conv1", "relu1"])
    assert (found["conv1"] < 0).any()
    assert found["relu1"].equal(nn.functional.leaky_relu(found["conv1"], 0.2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_start_is_step_0_of_the_run_of_its_seed(kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "start", kind, trained=False)
    facts, weights = read_encoder(tmp_path / "start").facts, read_encoder(tmp_path / "start").weights
    before = torch.random.get_rng_state()
    same, other = random_start(facts, facts.seed).state_dict(), random_start(facts, 4).state_dict()
    assert before.equal(torch.random.get_rng_state())
    assert all(same[name].equal(weights[name]) for name in weights)
    assert not other["conv3.weight"].equal(weights["conv3.weight"])


@pytest.mark.parametrize(
    ("choices", "comparable"),
    [({}, True), ({0: "a", 10: "a"}, True), ({0: "a", 10: "b"}, False), ({10: "b"}, False), ({0: "a"}, False)],
)
def test_the_random_start_stands_beside_scores_on_the_same_pictures_only(choices: dict[int, str], comparable: bool, tmp_path: Path) -> None:
    write_run(tmp_path, "inpainting", step=20)
    write_scores(tmp_path, 0, 10, choices=choices)
    facts = read_encoder(tmp_path).facts
    assert facts.scores is not None
    assert facts.scores["step"] == 10
    assert (facts.start is not None) == comparable
    assert ("its random start" in model_card(facts)) == comparable


def test_the_card_of_an_encoder_that_learned_labels_says_nothing_of_pretext_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "caffenet", step=20)
    facts = read_encoder(tmp_path).facts
    pretext, labels = model_card(facts), model_card(replace(facts, recipe="labels"))
    assert "tags: [context-encoder, self-supervised, safetensors]" in pretext
    assert "tags: [context-encoder, safetensors]" in labels
    assert "Frozen features of pretext tasks are weaker" in pretext
    assert "pretext" not in labels
    assert "- It has learned what its training pictures show" in labels


def test_the_facts_say_how_the_encoder_was_trained_and_what_it_scored(tmp_path: Path) -> None:
    write_run(tmp_path, "inpainting", step=20)
    write_scores(tmp_path, 0, 10, 30)
    facts = read_encoder(tmp_path).facts
    assert (facts.recipe, facts.player, facts.step, facts.seed, facts.global_batch) == ("inpainting", "generator", 20, 3, 256)
    assert facts.names[:4] == ["conv1", "relu1", "conv2", "bn2"]
    assert facts.data_sets == {"": f"{FINGERPRINT:016x}"}
    assert facts.scores is not None
    assert facts.start is not None
    assert (facts.scores["step"], facts.start["step"]) == (10, 0)  # the row of step 30 is of a later state
    assert (facts.side, facts.mean, facts.divisor, facts.fill) == (128, (127.5,) * 3, 127.5, (117.0, 104.0, 123.0))
    export_encoder(str(tmp_path), tmp_path / "encoder.safetensors")
    again = read_encoder(tmp_path / "encoder.safetensors").facts
    assert json.dumps(again.to_mapping()) == json.dumps(facts.to_mapping())
    assert b"secret" not in (tmp_path / "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_keeps_the_scale_that_its_data_set_was_built_at(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number, data in enumerate(photographs(12, 200, 220)):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(data)
    assert main([*("build", str(tmp_path / "pictures"), str(tmp_path / "set")), *("--resize", "150", "--workers", "0")]) == 0
    settings = ["--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "8", "--method.batch_norm_group", "2"]
    settings += ["--data.shards", str(tmp_path / "set"), "--run", str(tmp_path / "run"), "--training.steps", "1", "--data.threads", "1"]
    settings += ["--training.global_batch", "4", "--method.adversarial_weight", "0", "--monitoring.enabled", "False"]
    assert pretrain(parse(recipes.SETTINGS, settings), Interruption()).finished
    facts = read_encoder(tmp_path / "run").facts
    assert (facts.shorter_side, facts.shorter_side_from) == (150, "data set")


@pytest.mark.parametrize(("kind", "assumed"), [("caffenet", 256), ("inpainting", 144)])
@pytest.mark.parametrize("stored", [160, None, ...])
def test_the_scale_is_the_data_set_s_or_assumed_in_proportion_to_caffe_s(
    kind: str, assumed: int, stored: int | EllipsisType | None, tmp_path: Path
) -> None:
    """Checkpoints of older versions lack the fact; mixtures, and pictures that were stored as they are, have none."""
    write_run(tmp_path, kind, stored_side=stored)
    assert ("stored_side" in read(Store(str(tmp_path / "checkpoints")), 20).facts) == (stored is not ...)
    facts = read_encoder(tmp_path).facts
    expected = (160, "data set") if stored == 160 else (assumed, "assumed")
    assert (facts.shorter_side, facts.shorter_side_from, facts.transform.shorter_side) == (*expected, expected[0])
    assert type(facts).from_metadata(facts.to_metadata(), "here") == facts


def test_the_facts_name_each_data_set_of_a_mixture(tmp_path: Path) -> None:
    position = {"faces.epoch": 0, "faces.data_set": 1, "faces.seed": 7, "places.epoch": 2, "places.data_set": 0x20}
    write_run(tmp_path, "torchvision", position=position)
    assert read_encoder(tmp_path).facts.data_sets == {"faces": f"{1:016x}", "places": f"{0x20:016x}"}


def test_the_transform_scales_pixels_and_takes_pictures_of_any_size(exported: Path, tmp_path: Path) -> None:
    _, transform = load_encoder(exported)
    grey = torch.full((1, 227, 227, 3), 117, dtype=torch.uint8)
    assert transform(grey)[0, :, 5, 5].tolist() == pytest.approx([-6 / 128, 0, 13 / 128])
    with pytest.raises(ValueError, match="is not uint8"):
        transform(grey.float())
    with pytest.raises(ValueError, match="is not uint8"):
        transform(grey[:, :200])
    stored = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    middle = torch.from_numpy(stored[14 : 14 + 227, 36 : 36 + 227].copy())[None]
    assert transform.picture(Image.fromarray(stored)).equal(transform(middle))  # nothing is resized at the stored scale
    small, file = Image.new("L", (40, 20), 117), tmp_path / "small.png"
    small.save(file)
    for picture in (small, file, str(file)):
        found = transform.picture(picture)
        assert found.shape == (1, 3, 227, 227)
        assert found[0, 1].abs().max() == 0
    with pytest.raises(EncoderInvalid, match="can't be read as a picture"):
        transform.picture(exported)


def changed(path: Path, **facts: str) -> Path:
    """Writes the file anew with other metadata; an empty text leaves the fact out."""
    texts = {**read_encoder(path).facts.to_metadata(), **facts}
    target = path.with_name("changed.safetensors")
    save_file(load_file(path), target, {name: text for name, text in texts.items() if text})
    return target


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": "other"}, "holds no encoder of launch/export.py"),
        ({"side": ""}, "'side' is missing"),
        ({"mean": "[1, 2]"}, "damaged"),
        ({"shorter_side_from": "a guess"}, "'a guess' is none of data set, option, assumed"),
        ({"layers": "[]"}, "the list is empty"),
        ({"layers": "{"}, "damaged"),
        ({"layers": '[{"name": "conv1", "kind": "Linear", "arguments": {}}]'}, "unknown kind 'Linear'"),
        ({"layers": '[{"name": "conv1", "kind": "ReLU", "arguments": {"width": 1}}]'}, "do not fit"),
        (
            {
                "layers": '[{"name": "conv1", "kind": "Conv2d", "arguments": {"in_channels": 3, "out_channels": 1000000000, '
                '"kernel_size": 1000}}]'
            },
            "do not fit",
        ),
    ],
)
def test_damaged_facts_are_refused_by_name(exported: Path, facts: dict[str, str], message: str) -> None:
    with pytest.raises(EncoderInvalid, match=message) as error:
        load_encoder(changed(exported, **facts))
    assert len(str(error.value)) < 3000


def test_files_that_are_no_encoders_are_refused(tmp_path: Path) -> None:
    for name, message in (("missing.safetensors", "no such file"), ("encoder.onnx", "ONNX is for other programs")):
        with pytest.raises(EncoderInvalid, match=message):
            load_encoder(tmp_path / name)
    (tmp_path / "text.safetensors").write_text("no header")
    with pytest.raises(EncoderInvalid, match="not a safetensors file"):
        load_encoder(tmp_path / "text.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(EncoderInvalid, match="holds no encoder"):
        load_encoder(tmp_path / "bare.safetensors")


def test_an_encoder_is_loaded_from_a_bucket(s3: SeaweedFS, tmp_path: Path) -> None:
    write_run(tmp_path / "run", "torchvision")
    export_encoder(str(tmp_path / "run"), tmp_path / "encoder")
    s3.make_bucket("encoders")
    store = Store("s3://encoders", s3.options)
    for path in (path for folder in ("encoder", "run") for path in (tmp_path / folder).rglob("*") if path.is_file()):
        store.upload(path, str(path.relative_to(tmp_path)))
    expected = read_encoder(tmp_path / "encoder").weights
    for name in ("encoder", "encoder/encoder.safetensors", "run/checkpoints"):
        found = read_encoder(f"s3://encoders/{name}", s3.options)
        assert found.facts.step == 20
        assert all(found.weights[each].equal(expected[each]) for each in expected)
    with pytest.raises(EncoderInvalid, match="no such file"):
        load_encoder("s3://encoders/none.safetensors", s3.options)
