"""The demo: held-back pictures share no pixel with those that are trained on, and a demo that ends says what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.local.demo import DemoData, own_data, probe_command, steps_to_reach
from launch.local.demo_pictures import SIDE, TILE, TRAINED_SIDE, cut_pictures, divided, grey_tiles, shipped_photographs
from launch.local.demo_summary import PROBE, demo_setting, demo_settings, held_back, network, probe, summary, weights
from launch.local.object_store import SeaweedFS
from monitoring.run_files import CHECKPOINTS, EVALUATION, HISTORY, PICTURES, step_name
from pipeline.training.record.run_folder import read_lines
from shards.build.picture import PictureRules, prepare
from tests.datasets import photographs, write_dataset
from tests.launching import clean_environment, run_program, setting_list, train_in_turn

BASELINES = {"constant": {"l1": 24.0, "psnr": 12.0}, "visible_mean": {"l1": 12.0, "psnr": 19.5}}


def test_no_pixel_of_a_held_back_crop_is_trained_on(tmp_path: Path) -> None:
    """The left two thirds of the photograph are black, whatever is done to their colours, and the right third is white."""
    photograph = np.zeros((300, 451, 3), np.uint8)
    photograph[:, 300:] = 255
    sets = cut_pictures(tmp_path, {"photograph": photograph}, {"other": photograph}, trained_on=20, held_back=10)
    seen = {
        folder.name: [np.asarray(Image.open(file)) for file in sorted(folder.rglob("*.jpg"))]
        for folder in (sets.trained_on, sets.held_back)
    }
    assert {picture.shape for picture in seen["trained-on"]} == {(TRAINED_SIDE, TRAINED_SIDE, 3)}
    assert {picture.shape for picture in seen["held-back"]} == {(SIDE, SIDE, 3)}
    assert [len(pictures) for pictures in seen.values()] == [20, 10]
    assert max(picture.max() for picture in seen["trained-on"]) <= 2, "JPEG alone may change black"
    assert min(picture.min() for picture in seen["held-back"]) >= 253
    labelled = [np.asarray(Image.open(file)) for file in (sets.labelled / "photograph").iterdir()]
    assert min(picture.min() for picture in labelled) >= 253, "a labelled tile is of the held-back third"


def test_crops_are_the_same_each_time_and_cut_once(tmp_path: Path) -> None:
    photograph = np.random.default_rng(3).integers(0, 256, (200, 600, 3), dtype=np.uint8)
    first, second = (cut_pictures(tmp_path / name, {"a": photograph}, {}, 4, 2) for name in ("one", "two"))
    for one, two in zip(sorted(first.trained_on.rglob("*.jpg")), sorted(second.trained_on.rglob("*.jpg")), strict=True):
        assert one.read_bytes() == two.read_bytes()
    (first.trained_on / "a" / "000.jpg").write_bytes(b"kept")
    cut_pictures(tmp_path / "one", {"a": photograph}, {}, 4, 2)
    assert (first.trained_on / "a" / "000.jpg").read_bytes() == b"kept"


def test_a_build_at_the_side_of_the_crops_keeps_their_bytes(tmp_path: Path) -> None:
    """The manifest says the side that an exported encoder needs, and the data set stays the same."""
    photograph = np.random.default_rng(3).integers(0, 256, (200, 600, 3), dtype=np.uint8)
    sets = cut_pictures(tmp_path, {"a": photograph}, {}, 2, 2)
    for folder, side in ((sets.trained_on, TRAINED_SIDE), (sets.held_back, SIDE)):
        for file in folder.rglob("*.jpg"):
            assert prepare(file.read_bytes(), PictureRules(resize=side)).data == file.read_bytes()


def test_labelled_tiles_share_no_pixel() -> None:
    """Every tile of a picture of many greys is one grey, and no grey comes twice."""
    rows, columns = np.mgrid[0 : 4 * TILE, 0 : 3 * TILE] // TILE
    picture = (20 * (3 * rows + columns)).astype(np.uint8)
    tiles = grey_tiles(picture, np.random.default_rng(0))
    assert sorted(int(tile[0, 0, 0]) for tile in tiles) == list(range(0, 240, 20))
    assert all((tile == tile[0, 0, 0]).all() for tile in tiles)
    assert len(grey_tiles(picture, np.random.default_rng(0), most=5)) == 5


def test_every_shipped_photograph_has_a_third_that_a_crop_fits_into() -> None:
    found = shipped_photographs()
    assert len(found) == 7
    assert all(min(part.shape[:2]) >= SIDE for photograph in found.values() for part in divided(photograph))


def test_called_again_it_trains_as_many_steps_more() -> None:
    steps = demo_setting("steps")
    assert [steps_to_reach(before) for before in (0, steps - 1, steps, 2 * steps)] == [steps, steps, 2 * steps, 3 * steps]


def test_the_network_is_described_beside_the_published_one() -> None:
    assert weights(64, 4000) == 71_124_544
    assert "one in 18 of the published network's" in network(demo_settings()["method"])
    assert network({**demo_settings()["method"], "adversarial_weight": 0.001}).endswith("for 4000)")


def test_figures_stand_beside_both_baselines_and_the_random_start() -> None:
    row = {"step": 4, "pictures": 252, "l1": 9.0, "psnr": 20.25, "gain": 0.25, "baselines": BASELINES}
    text = held_back({0: {"l1": 30.0, "psnr": 9.0}, 4: row}, 4, "elsewhere")
    assert "L1 9.0 %, PSNR 20.2 dB in the holes of 252 pictures (elsewhere)" in text
    assert (
        "mean of the visible part: L1 12.0 %, PSNR 19.5 dB; one constant colour: L1 24.0 %, PSNR 12.0 dB; random start: L1 30.0 %" in text
    )
    assert text.endswith("25% less L1 than the stronger baseline")
    assert "25% more L1" in held_back({4: {**row, "gain": -0.25}}, 4, "elsewhere")
    assert held_back({0: row}, 4, "elsewhere") == "not evaluated"
    for choice, shown in (("same", True), ("other", False)):
        rows = {0: {"l1": 30.0, "psnr": 9.0, "choice": choice}, 4: {**row, "choice": "same"}}
        assert ("random start" in held_back(rows, 4, "elsewhere")) == shown, "on the same pictures only"


def test_a_probe_of_another_step_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(json.dumps({"encoder": {"step": 3}}))
    assert probe(tmp_path / "probe.json", 4, "which").startswith("none")
    assert probe(tmp_path / "missing.json", 4, "which").startswith("none")


@pytest.mark.slow
def test_too_few_pictures_of_ones_own_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    images = tmp_path / "few"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(images / f"{number}.png")
    with SeaweedFS(tmp_path / "store") as server:
        server.make_bucket("demo")
        with pytest.raises(SystemExit, match=r"has 3 pictures that can be read.*give it 80 or more"):
            own_data(images, server, clean_environment(**server.environment))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps of a narrow network."""
    folder = tmp_path_factory.mktemp("demo")
    write_dataset(folder / "set", photographs(100, 140, 160), [100])
    narrow = ["--recipe", "inpainting", "--method.width", "4", "--method.bottleneck", "8", "--method.batch_norm_group", "2"]
    settings = [*narrow, "--training.global_batch", "4", "--evaluation.every", "1", "--method.adversarial_weight", "0"]
    train_in_turn(folder, 1, [list(setting_list(folder / "set", folder / "run", 2, *settings))])
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("nothing", ""),
        ("ranks", "the metrics do not show two ranks"),
        ("evaluation", "the last step was not evaluated on held-back pictures"),
        ("baseline", "held-back pictures are painted no better than by the stronger baseline"),
        ("loss", "the loss did not fall"),
        ("picture", "no picture was drawn"),
    ],
)
def test_the_demo_fails_where_something_is_missing(
    broken: str, problem: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a real run, with one thing of it changed; the run is as long as a demo of two steps."""
    settings = demo_settings()
    settings["training"] |= {"steps": 2, "pictures_every": 2}
    monkeypatch.setattr("launch.local.demo_summary.demo_settings", lambda: settings)
    run = tmp_path / "run"
    (run / PICTURES).mkdir(parents=True)
    (run / CHECKPOINTS).symlink_to(trained / CHECKPOINTS)
    rows: list[dict[str, Any]] = list(read_lines(trained / EVALUATION))
    rows[-1]["gain"] = -0.1 if broken == "baseline" else 0.1
    losses = list(read_lines(trained / HISTORY))
    for row, loss in zip(losses, (1.0, 2.0) if broken == "loss" else (2.0, 1.0), strict=True):
        row["losses"]["generator"]["total"] = loss
    write_lines(run / EVALUATION, rows[:-1] if broken == "evaluation" else rows)
    write_lines(run / HISTORY, losses)
    if broken != "picture":
        (run / PICTURES / f"{step_name(2)}.png").touch()
    world = 1 if broken == "ranks" else 2
    (tmp_path / "metrics.txt").write_text(f'context_encoder_world_size{{run="demo"}} {world}.0\n')
    code = summary(run, 0, tmp_path / "metrics.txt", "elsewhere", "which", 60.0)
    assert capsys.readouterr().err == (f"error: {problem}\n" if problem else "")
    assert code == bool(problem)


@pytest.mark.slow
def test_the_encoder_is_probed_beside_its_random_start(trained: Path, tmp_path: Path) -> None:
    """The command of the demo itself, on tiles of two pictures that a colour can't tell apart: its figures are what the demo shows."""
    random = np.random.default_rng(0)
    fine = random.integers(0, 256, (240, 240, 3), dtype=np.uint8)
    coarse = fine[:60, :60].repeat(4, axis=0).repeat(4, axis=1)
    sets = cut_pictures(tmp_path / "pictures", {}, {"fine": fine, "coarse": coarse})
    data = DemoData("shipped", "", "", str(sets.labelled), "elsewhere", "which picture")
    command = probe_command(data, tmp_path)
    command[command.index(str(tmp_path))] = str(trained)
    done = run_program(*command[1:])
    assert done.returncode == 0, done.stderr
    first, neighbours, ridge, files = probe(tmp_path / PROBE, 2, data.task).split("\n")
    assert first == "which picture; 50 pictures of 2 classes, frozen output of the encoder"
    for line, name in ((neighbours, "nearest neighbours"), (ridge, "ridge regression")):
        assert re.search(rf"by {name}: [\d.]+%, best random start [\d.]+%, mean colour [\d.]+%; to the best random start [+-]", line), line
        assert line.endswith("too few pictures")
    assert files.endswith(str(tmp_path / PROBE))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
