"""`launch/export.py`: a trained encoder becomes a file or folder that other programs read, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from launch.export import main
from pipeline.evaluation.encoder import EncoderInvalid, load_encoder, read_encoder
from pipeline.evaluation.export import export_encoder
from pipeline.evaluation.model_card import PLAIN_TORCH
from pipeline.training.checkpoint.store import folder_name
from tests.conftest import ROOT
from tests.pipeline.evaluation.runs import FINGERPRINT, KINDS, pictures, write_run, write_scores

WITHOUT_PACKAGE = """\
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pipeline", "shards", "monitoring", "launch", "tests"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""
"""First lines of a program for which this repository is not there, installed or not."""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["launch/export.py", *arguments])
    return main()


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run of an eighth of caffenet with checkpoints of steps 10 and 20."""
    for step in (10, 20):
        write_run(tmp_path / "run", "caffenet", step)
    return str(tmp_path / "run")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A photograph at the stored scale, where no resize can differ; stored lying on its side, as a camera that was turned does it."""
    from skimage import data

    lying = Image.Exif()
    lying[0x0112] = 6  # orientation: a quarter turn clockwise makes it upright
    Image.fromarray(np.rot90(data.astronaut()[100:356, 50:350])).save(tmp_path / "photo.jpg", exif=lying)
    return tmp_path / "photo.jpg"


EXPECTED = {"side": 227, "channels": "RGB", "mean": [123.0, 117.0, 104.0], "divisor": 128.0, "shorter_side": 256}


def readme_code() -> list[str]:
    """The blocks of Python in README.md's section on the use of an encoder."""
    section = (ROOT / "README.md").read_text().partition("\n## Use the encoder\n")[2].partition("\n## ")[0]
    return [block.partition("```")[0] for block in section.split("```python\n")[1:]]


def test_the_encoder_of_the_newest_checkpoint_or_of_a_step_is_written_alone(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "encoder.safetensors"
    for arguments, step in (([], 20), (["--step", "10"], 10)):
        assert call(monkeypatch, run, str(target), *arguments) == 0
        assert f"the encoder of context_encoder after {step} steps, 10 tensors, 40,432 values" in capsys.readouterr().out
        trained = read_encoder(run, step=step).weights
        written = load_file(target)
        assert written.keys() == trained.keys()
        assert all(written[name].equal(trained[name]) for name in trained)
        with safe_open(target, "pt") as file:
            facts = file.metadata()
        assert (facts["step"], facts["recipe"], facts["layout"], facts["channels"]) == (str(step), "features", "caffenet", "RGB")
        assert (facts["side"], facts["mean"], facts["divisor"]) == ("227", "[123.0, 117.0, 104.0]", "128.0")
        assert json.loads(facts["data_sets"]) == {"": f"{FINGERPRINT:016x}"}
        assert [layer["name"] for layer in json.loads(facts["layers"])][:4] == ["conv1", "relu1", "pool1", "norm1"]
        assert json.loads(facts["method"])["width"] == 12


def test_a_file_that_can_not_be_written_is_an_error_and_the_old_one_stays(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("encoder.safetensors", "encoder"):
        target = tmp_path / name.removesuffix(".safetensors") / name
        assert call(monkeypatch, run, str(target)) == 1
        assert "its folder does not exist" in capsys.readouterr().err
        target.parent.mkdir()
        assert call(monkeypatch, run, str(target), "--step", "10") == 0
        before = contents(target.parent)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails a write in its middle, as a full disk does
        try:
            code = call(monkeypatch, run, str(target))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 1
        assert "too large" in capsys.readouterr().err
        assert contents(target.parent) == before
        target.parent.rename(tmp_path / f"done {name}")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_every_file_of_an_export_obeys_the_umask(umask: int, run: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = os.umask(umask)
    try:
        out.mkdir()
        for name in ("encoder.safetensors", "encoder"):
            export_encoder(run, out / name)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()} == {0o666 & ~umask}
    assert stat.S_IMODE((out / "encoder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none/encoder.safetensors", "none/encoder.safetensors: its folder does not exist. Make it first"),
        ("folder.safetensors", "folder.safetensors: is not a file that can be replaced"),
        ("s3://bucket/encoder.safetensors", "target: s3:/bucket/encoder.safetensors is a URL, not a path of this machine"),
        ("s3:/bucket/encoder", "target: s3:/bucket/encoder is a URL, not a path of this machine"),
    ],
)
def test_a_place_that_nothing_can_be_written_to_is_refused_before_a_run_is_read(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "folder.safetensors").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    assert call(monkeypatch, "no run", place) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["folder.safetensors"]


def test_a_place_that_turns_out_not_to_be_writable_is_named_in_one_line(run: str) -> None:
    with pytest.raises(EncoderInvalid, match=r"^/proc/encoder.safetensors: can't be written \(No such file or directory\). Make room"):
        export_encoder(run, Path("/proc/encoder.safetensors"))


@pytest.mark.parametrize("kind", ["safetensors", "folder", "torchvision"])
def test_every_format_says_what_the_encoder_expects(kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", "torchvision")
    target = tmp_path / ("folder" if kind == "folder" else "file.safetensors")
    export_encoder(str(tmp_path / "run"), target, torchvision_names=kind == "torchvision")
    if kind == "folder":
        facts = json.loads((target / "config.json").read_text(), parse_constant=pytest.fail)
    else:
        with safe_open(target, "pt") as file:
            texts = file.metadata()
        facts = {name: text if name == "channels" else json.loads(text) for name, text in texts.items() if name in EXPECTED}
    assert {name: facts[name] for name in EXPECTED} == EXPECTED


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_sound_checkpoint_there_is_an_error(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (10, 20):
        (Path(run) / "checkpoints" / folder_name(step) / "context_encoder.safetensors").write_bytes(b"damaged")
    assert call(monkeypatch, run, str(tmp_path / "encoder.safetensors")) == 1
    assert "no checkpoint that verifies" in capsys.readouterr().err
    assert call(monkeypatch, run, str(tmp_path / "encoder.safetensors"), "--storage", "secret") == 1
    assert "a --storage option is KEY=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "encoder.safetensors").exists()


def test_a_checkpoint_of_another_recipe_or_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "other", "caffenet", recipe="jigsaw")
    with pytest.raises(EncoderInvalid, match="the recipe 'jigsaw' is not in pipeline/recipes"):
        export_encoder(str(tmp_path / "other"), tmp_path / "encoder")
    write_run(tmp_path / "newer", "caffenet", config={"method": {"depth": 5}, "seed": 0, "training": {"global_batch": 1}})
    with pytest.raises(EncoderInvalid, match=r"method.depth: no such setting"):
        export_encoder(str(tmp_path / "newer"), tmp_path / "encoder")
    write_run(tmp_path / "wider", "caffenet", config={"method": {"width": 24}, "seed": 0, "training": {"global_batch": 1}})
    with pytest.raises(EncoderInvalid, match=r"size mismatch for conv1.weight"):
        export_encoder(str(tmp_path / "wider"), tmp_path / "encoder")


def test_a_folder_holds_weights_facts_and_a_model_card_and_is_replaced_as_a_whole(run: str, tmp_path: Path) -> None:
    write_scores(Path(run), 0, 10)
    target = tmp_path / "encoder"
    export_encoder(run, target, step=10)
    export_encoder(run, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "run"]
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "config.json", "encoder.safetensors"]
    facts = read_encoder(target).facts
    assert facts.step == 20
    assert json.loads((target / "config.json").read_text()) == json.loads(json.dumps(facts.to_mapping()))
    card = (target / "README.md").read_text()
    for text in ("(v - mean) / 128", "123, 117, 104", "| steps | 20, each of 256", f"{FINGERPRINT:016x}", "visible mean | 0.395 | 9 |"):
        assert text in card
    assert "| this encoder's network, step 10 | 0.49 | 8 |" in card
    (target / "notes.txt").write_text("mine")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (target, tmp_path / "project", tmp_path / "file"):
        with pytest.raises(EncoderInvalid, match=r"is not an exported folder alone \(.*\). Name a new folder"):
            export_encoder(run, place)
    assert [path.read_text() for path in (target / "notes.txt", tmp_path / "project" / "README.md", tmp_path / "file")] == ["mine"] * 3
    for part in (card, (target / "config.json").read_text()):
        assert "secret" not in part


def test_an_exported_encoder_is_converted_like_a_run(run: str, tmp_path: Path) -> None:
    export_encoder(run, tmp_path / "encoder")
    for source in (tmp_path / "encoder", tmp_path / "encoder" / "encoder.safetensors"):
        export_encoder(str(source), tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "encoder" / "encoder.safetensors").read_bytes()
        export_encoder(str(source), tmp_path / "weights", kind="safetensors", step=20)  # the format overrules the ending
        assert (tmp_path / "weights").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
        with pytest.raises(EncoderInvalid, match="holds the encoder after 20 steps, not 10"):
            export_encoder(str(source), tmp_path / "weights", kind="safetensors", step=10)


def test_the_scale_of_the_training_can_be_given_where_a_run_does_not_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", "inpainting", stored_side=None)
    first, second = tmp_path / "encoder", tmp_path / "again"
    assert call(monkeypatch, str(tmp_path / "run"), str(first)) == 0
    assert (
        "resize it to a shorter side of 144 pixels,\nand take its middle. That scale is assumed, because"
        in (first / "README.md").read_text()
    )
    assert call(monkeypatch, str(first), str(second), "--stored-side", "350") == 0
    assert "a shorter side of 350 pixels,\nand take its middle. That scale was given" in (second / "README.md").read_text()
    config = json.loads((second / "config.json").read_text())
    assert (config["shorter_side"], config["shorter_side_from"]) == (350, "option")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (350, 400, 3), dtype=np.uint8))
    _, transform = load_encoder(second)
    assert transform.picture(picture).equal(transform(torch.from_numpy(np.array(picture)[111:239, 136:264])[None]))
    capsys.readouterr()
    assert call(monkeypatch, str(first), str(second), "--stored-side", "0") == 1
    assert "--stored-side 0: give the shorter side of the stored pictures in pixels, 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("stored_side", [100, 160])
def test_plain_torch_sees_the_same_middle_at_any_stored_scale(stored_side: int, tmp_path: Path) -> None:
    """An encoder of 128 pixels sees all of a picture that was stored smaller."""
    write_run(tmp_path / "run", "inpainting", stored_side=stored_side)
    export_encoder(str(tmp_path / "run"), tmp_path / "encoder")
    side = max(128, stored_side)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    done: dict[str, torch.Tensor] = {}
    code = PLAIN_TORCH.replace("photo.jpg", str(tmp_path / "photo.png")).replace('"encoder/', f'"{tmp_path}/encoder/')
    exec(code, done)  # noqa: S102  # lines of this repository
    _, transform = load_encoder(tmp_path / "encoder")
    assert torch.equal(done["inputs"].permute(2, 0, 1)[None], transform.picture(tmp_path / "photo.png"))


def test_the_lines_of_the_readme_load_the_encoder(run: str, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_encoder(run, tmp_path / "encoder")
    code = readme_code()[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    done: dict[str, torch.Tensor] = {}
    exec(code, done)  # noqa: S102  # lines of this repository
    module, transform = load_encoder(tmp_path / "encoder")
    with torch.no_grad():
        assert done["maps"].equal(module(transform.picture(photograph)))
    assert list(done["by_layer"]) == ["relu1", "pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "pool5"]


def test_the_lines_of_the_document_load_the_encoder(run: str, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_encoder(run, tmp_path / "encoder")
    section = (ROOT / "docs" / "encoder.md").read_text().partition("\n## Load it with this package\n")[2]
    monkeypatch.chdir(photograph.parent)
    done: dict[str, Any] = {"images": pictures(227)}
    exec(section.split("```")[1].removeprefix("python\n"), done)  # noqa: S102  # lines of this repository
    assert (done["maps"].shape, done["one"].shape) == ((3, 32, 6, 6), (1, 32, 6, 6))
    assert list(done["found"]) == ["relu3", "pool5"]
    assert not done["untrained"](done["transform"](done["images"])).equal(done["maps"])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_computes_the_same_where_this_package_is_not_installed(kind: str, photograph: Path, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", kind)
    export_encoder(str(tmp_path / "run"), tmp_path / "encoder")
    code = readme_code()[1]
    assert code == PLAIN_TORCH
    assert code in (tmp_path / "encoder" / "README.md").read_text()
    program = f"{WITHOUT_PACKAGE}{code}\nnumpy.save('maps.npy', maps.detach().numpy())\n"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    _, transform = load_encoder(tmp_path / "encoder")
    with torch.no_grad():
        expected = trained(transform.picture(photograph))
    difference = (torch.from_numpy(np.load(tmp_path / "maps.npy")) - expected).abs().max()
    print(f"{kind}: plain torch differs by {difference:.1e} of at most {expected.abs().max():.1f}")
    assert difference < 1e-5 * max(1, float(expected.abs().max()))


def test_the_package_is_not_there_for_a_program_that_begins_with_these_lines() -> None:
    command = [sys.executable, "-I", "-c", f"{WITHOUT_PACKAGE}import pipeline"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError: pipeline" in done.stderr


def test_torchvision_names_fit_its_network_and_are_refused_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = write_run(tmp_path / "run", "torchvision")
    target = tmp_path / "alexnet.safetensors"
    assert call(monkeypatch, str(tmp_path / "run"), str(target), "--names", "torchvision") == 0
    features = nn.Sequential(  # as torchvision's AlexNet has it, with an eighth of the maps
        *(nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 24, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    )
    network = nn.ModuleDict({"features": features})
    network.load_state_dict(load_file(target))
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(features(inputs), trained(inputs), atol=1e-6)
    with pytest.raises(EncoderInvalid, match=r"its format is 'torchvision-alexnet'"):
        load_encoder(target)
    capsys.readouterr()
    assert call(monkeypatch, str(tmp_path / "run"), str(tmp_path / "folder"), "--names", "torchvision") == 1
    assert "export them as safetensors" in capsys.readouterr().err
    for kind in ("caffenet", "batch norm", "inpainting"):
        write_run(tmp_path / kind, kind)
        assert call(monkeypatch, str(tmp_path / kind), str(target), "--names", "torchvision") == 1
        assert "whose layers differ from this encoder's" in capsys.readouterr().err
    assert load_file(target).keys() == network.state_dict().keys()  # a refusal leaves what was there


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_is_one_file_that_computes_the_same_for_any_number_of_pictures(kind: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    trained = write_run(tmp_path / "run", kind)
    (tmp_path / "onnx").mkdir()
    target = tmp_path / "onnx" / "encoder.onnx"
    export_encoder(str(tmp_path / "run"), target)
    assert [path.name for path in target.parent.iterdir()] == ["encoder.onnx"]
    facts = {each.key: each.value for each in onnx.load(target).metadata_props}
    assert facts == read_encoder(tmp_path / "run").facts.to_metadata()
    assert not any(place in target.read_bytes() for place in (str(ROOT).encode(), sys.prefix.encode(), b"site-packages", b"secret"))
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    _, transform = load_encoder(tmp_path / "run")
    for count in (1, 2, 5):
        inputs = transform(pictures(transform.side, count))
        with torch.no_grad():
            expected = trained(inputs.clone())
        found = torch.from_numpy(session.run(None, {"images": inputs.contiguous().numpy()})[0])
        difference = (found - expected).abs().max()
        print(f"{kind}, {count} pictures: onnxruntime differs by {difference:.1e} of at most {expected.abs().max():.1f}")
        assert difference < 1e-4


@pytest.mark.slow
def test_an_onnx_file_that_computes_something_else_is_not_written(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class Changed(onnxruntime.InferenceSession):
        def run(self, *arguments: object) -> list[object]:
            return [values + 1e-2 for values in super().run(*arguments)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Changed)
    with pytest.raises(EncoderInvalid, match="onnxruntime differs from torch by"):
        export_encoder(run, tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_the_packages_of_onnx_the_error_names_the_extra(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EncoderInvalid, match=r"needs the package onnxscript: pip install -e '\.\[onnx\]'"):
        export_encoder(run, tmp_path / "encoder.onnx")
