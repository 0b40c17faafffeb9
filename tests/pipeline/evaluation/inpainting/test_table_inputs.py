"""The command of the table, its settings, and everything that it can't be made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.evaluate import main
from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.inpainting.parts import InpaintingError, Part, read_part, refuse_other, write_part
from pipeline.evaluation.inpainting.settings import METHODS, NETWORK, parse
from pipeline.evaluation.inpainting.table import methods_of, table_csv
from pipeline.evaluation.inpainting.work import evaluate
from pipeline.evaluation.part_folder import PartDamaged
from pipeline.mapping import ConfigError
from shards.errors import ExplainedError
from shards.shapes.bank import Provenance, make_bank, read_bank, write_bank
from tests.datasets import photographs, write_dataset
from tests.pipeline.evaluation.inpainting.alexnet import state
from tests.pipeline.evaluation.inpainting.runs import SMALL, settings, table_of, write_run

FILES = {"pictures.csv", "table.csv", "grid.png", "table.json"}


def test_the_command_prints_the_table_beside_its_files_in_the_run_folder(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(given / "run", tmp_path / "run")
    (tmp_path / "run" / "history.jsonl").write_text("")
    arguments = ["inpainting", str(tmp_path / "run"), "--data.shards", str(given / "other"), "--limit", "5", "--methods", "mean", *SMALL]
    torch.save(state(), tmp_path / "lpips.pt")
    assert main([*arguments, "--save", "True", "--lpips", str(tmp_path / "lpips.pt")]) == 0
    said = capsys.readouterr().out
    assert "5 pictures of 64 x 64 pixels from" in said
    assert "Network and decoder together: " in said
    page = tmp_path / "run" / "report.html"
    assert said.splitlines()[-1] == f"report: {page}"
    assert f"Pictures: {given / 'other'}. Masks: central." in page.read_text()
    out = tmp_path / "run" / "inpainting" / "step_000000020"
    assert {path.name for path in out.iterdir()} == {*FILES, "fills"}
    assert len(list((out / "fills" / "truth").glob("*.png"))) == len(list((out / "fills" / "context_encoder").glob("*.png"))) == 5
    assert all(each["figures"]["lpips"]["mean"] > 0 for each in table_of(out)["methods"])
    arguments += ["--lpips", str(tmp_path / "lpips.pt")]
    assert main(arguments) == 0
    assert "was whole already" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "out"), "--limit", "2", "--pictures", "0"]) == 0
    assert "no report was written: the page of the run shows tables in " in capsys.readouterr().out
    assert main([*arguments, "--pictures", "4"]) == 1
    assert "grid is 3 there and 4 now. Name another folder with --out" in capsys.readouterr().err


def test_pictures_that_were_trained_on_are_judged_with_a_warning_and_find_no_neighbours(given: Path, tmp_path: Path) -> None:
    outcome = evaluate(settings(given, tmp_path / "out", "--data.shards", str(given / "set"), "--limit", "4"))
    assert "is the data set that the run was TRAINED on" in outcome.text
    assert [each["name"] for each in table_of(tmp_path / "out")["methods"]] == ["mean", "telea", "context_encoder"]
    more = ("--data.shards", str(given / "other"), "--train.shards", str(given / "other"))
    with pytest.raises(InpaintingError, match=r"train\.shards: is the data set that is judged on"):
        evaluate(settings(given, tmp_path / "again", *more))


def test_unreadable_pictures_are_counted_left_out_and_refused_above_the_limit(given: Path, tmp_path: Path) -> None:
    pictures = photographs(6, 80, 80)
    pictures[2], pictures[4] = b"no picture", pictures[4][:300]
    write_dataset(tmp_path / "bad", pictures, [6])
    more = ("--data.shards", str(tmp_path / "bad"), "--methods", "mean")
    with pytest.raises(InpaintingError, match=r"data\.shards: 2 of 6 pictures are unreadable, data\.max_bad_fraction allows 0\.0001"):
        evaluate(settings(given, tmp_path / "out", *more))
    named = [json.loads(line) for line in (tmp_path / "out" / "unreadable.jsonl").read_text().splitlines()]
    assert [each["sample_id"] for each in named] == [2, 4]
    outcome = evaluate(settings(given, tmp_path / "out", *more, "--data.max_bad_fraction", "0.5"))
    assert "2 unreadable pictures are left out of those that are judged on" in outcome.text
    assert (table_of(tmp_path / "out")["pictures"], table_of(tmp_path / "out")["unreadable"]) == (4, 2)
    more = ("--train.shards", str(tmp_path / "bad"), "--data.max_bad_fraction", "0.5")
    outcome = evaluate(settings(given, tmp_path / "searched", *more))
    assert "2 unreadable pictures are left out of those that are searched for neighbours" in outcome.text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--methods", "mean,tela"], r"methods: 'tela' is none of .*Did you mean 'telea'\?"),
        (["--mask.kind", "block"], r"mask: .*step 20 paints the central region alone"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--train.shards", "x", "--methods", "mean"], r"train\.shards: only nearest_hog and nearest_encoder paste"),
        (["--fid", "weights"], r"fid: FID is not computed here.*--save True.*pytorch_fid"),
        (["--lpips", "lpips.pt"], r"lpips\.pt: no such file of LPIPS's weights"),
        (["--step", "7"], "step_000000007.*no such checkpoint"),
        (["--data.unavailable", "substitute"], r"data\.unavailable: .*Leave it at stop"),
        (["--batch", "0"], r"batch: 0 is not at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_can_not_be_followed_is_named(
    given: Path, tmp_path: Path, more: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExplainedError, match=expected):
        evaluate(parse([str(given / "run"), "--out", "out", *more]))


def test_fills_of_a_table_that_was_made_without_them_are_refused(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "expected", tmp_path / "out")
    with pytest.raises(InpaintingError, match=r"save is False there and True now\. Name another folder with --out"):
        evaluate(settings(given, tmp_path / "out", "--save", "True"))
    write_run(tmp_path / "run", given / "set", "--evaluation.shards", str(given / "other"), held_back=0)
    config = settings(tmp_path, tmp_path / "out", "--methods", "none", "--data.storage_options", "anon", "True")
    assert config.data.shards == str(given / "other")
    assert config.data.storage_options == {"anon": "True"}


def test_a_part_of_another_unit_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    first, second, facts = Unit(0, 0, 1), Unit(1, 1, 2), {"step": 1}
    for name, values in (("right", 1.0), ("wrong", 2.0)):
        with open(tmp_path / name, "wb") as file:
            write_part(file, Part({"figures": np.array([values])}, {}, []), first, facts)
    assert read_part(tmp_path / "right", first, facts).arrays["figures"] == 1
    with pytest.raises(PartDamaged, match="the part of unit 0, not of 1"):
        read_part(tmp_path / "right", second, facts)
    with pytest.raises(InpaintingError, match=r"save is True there and False now\. .*with --out, give --save True again, or remove"):
        refuse_other(tmp_path, {"save": True}, {"save": False})
    data = (tmp_path / "right").read_bytes()
    (tmp_path / "wrong").write_bytes(data[:-8] + np.array([3.0]).tobytes())
    with pytest.raises(PartDamaged, match="damaged: its figures are not those that were written"):
        read_part(tmp_path / "wrong", first, facts)


def test_figures_that_are_not_there_are_empty_cells() -> None:
    figures = {NETWORK: np.array([[1.5, 2.0, 3.0, np.nan, 4.0, 5.0, 6.0]])}
    text = table_csv({"methods": methods_of(figures, {NETWORK: "ours"})}).decode()
    assert text.splitlines()[1] == "context_encoder,ours,1.5,,,2.0,,,3.0,,,,,,4.0,,,5.0,,,6.0,,"


def test_a_run_that_fills_no_holes_holds_nothing_back_or_has_diverged_is_named(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "set", tmp_path / "moved")
    write_run(tmp_path / "plain", given / "set", recipe=("--recipe", "autoencoder", "--method.width", "12"))
    write_run(tmp_path / "all", given / "set", held_back=0)
    write_run(tmp_path / "nan", given / "set", spoil=float("nan"))
    write_run(tmp_path / "gone", tmp_path / "moved")
    write_run(tmp_path / "unjudged", given / "set", "--evaluation.shards", str(tmp_path / "moved"))
    shutil.rmtree(tmp_path / "moved")
    for name, expected in (
        ("plain", "'autoencoder' does not learn to fill holes"),
        ("all", r"holds no pictures back .*Name pictures to judge on with --data\.shards"),
        ("nan", r"the network's output is not finite\. Has its training diverged\?"),
        ("gone", r"the data set that the run was trained on can't be read: .*with --data\.shards"),
        ("unjudged", r"the run's evaluation\.shards can't be read: .*moved.* Name pictures to judge on with --data\.shards"),
        ("none", "holds no checkpoint"),
    ):
        with pytest.raises(ExplainedError, match=expected):
            evaluate(parse([str(tmp_path / name), "--out", str(tmp_path / "out"), "--methods", "none", *SMALL]))


def test_crops_and_masks_are_by_default_those_of_the_run_and_its_data_sets_are_searched_together(given: Path, tmp_path: Path) -> None:
    masks = ("--method.mask.kind", "block", "--method.mask.overlap", "0", "--method.mask.max_fraction", "0.2")
    write_dataset(tmp_path / "second", photographs(20, 70, 70), [20])
    sets = {"first": given / "other", "second": tmp_path / "second"}
    write_run(tmp_path / "run", sets, "--data.crop", "random_resized", *masks, held_back=3)
    config = parse([str(tmp_path / "run")])
    assert (config.data.crop, config.mask.kind, config.mask.max_fraction, config.names) == ("random_resized", "block", 0.2, METHODS)
    config = parse([str(tmp_path / "run"), "--mask.kind", "noise_pattern"])
    assert (config.mask.kind, config.mask.max_fraction) == ("noise_pattern", 0.25)
    assert parse([str(tmp_path / "run"), "--mask.kind", "block"]).mask.max_fraction == 0.2
    with pytest.raises(ConfigError, match="no such setting"):
        parse([str(tmp_path / "run"), "--mask.fraction", "1"])
    assert parse([str(tmp_path / "run"), "--mask.max_fraction", "0.3"]).mask.kind == "block"
    own = settings(tmp_path, tmp_path / "own", "--methods", "nearest_hog")
    other = settings(tmp_path, tmp_path / "other", "--methods", "none", "--mask.kind", "region")
    assert evaluate(own).finished
    assert evaluate(other).finished
    first, second = table_of(tmp_path / "own"), table_of(tmp_path / "other")
    assert (first["pictures"], first["training_pictures"]) == (6, 9 + 20 - 6)
    assert first["facts"]["choice"] != second["facts"]["choice"]
    assert (first["mask"], second["mask"]) == ("block", "region")
    assert first["methods"][-1]["figures"] != second["methods"][-1]["figures"]


@pytest.mark.parametrize(
    ("of_run", "given_now"),
    [
        ({"kind": "noise_pattern", "overlap": 0}, {"noise_fractions": (0.1, 0.3)}),
        ({"kind": "region", "overlap": 0, "min_fraction": 0.2, "max_fraction": 0.5, "mean_fraction": 0.3}, {"mean_fraction": 0.35}),
        ({"kind": "region", "overlap": 0, "min_fraction": 0.2, "max_fraction": 0.5}, {"min_fraction": 0.22}),
        ({"kind": "central", "overlap": 4}, {"overlap": 4}),
    ],
    ids=lambda values: " ".join(map(str, values.values())),
)
def test_settings_of_masks_are_checked_against_those_of_the_run(
    given: Path, tmp_path: Path, of_run: dict[str, Any], given_now: dict[str, Any]
) -> None:
    def words(prefix: str, values: dict[str, Any]) -> list[str]:
        return [word for name, value in values.items() for word in (f"--{prefix}.{name}", *str(value).strip("()").split(", "))]

    write_run(tmp_path / "run", given / "set", *words("method.mask", of_run))
    mask = parse([str(tmp_path / "run"), *words("mask", given_now)]).mask
    assert {name: getattr(mask, name) for name in of_run} == {**of_run, **{n: v for n, v in given_now.items() if n in of_run}}
    assert {name: getattr(mask, name) for name in given_now} == given_now


def test_the_masks_are_those_of_the_runs_bank_of_shapes_and_another_bank_is_refused(given: Path, tmp_path: Path) -> None:
    square, triangle = np.array([[0, 0], [0, 20], [20, 20], [20, 0]], np.int16), np.array([[0, 0], [0, 31], [17, 5]], np.int16)
    bank = str(tmp_path / "bank.safetensors")
    write_bank(bank, make_bank([[square], [triangle]], Provenance("here")))
    masks = ("--method.mask.kind", "region", "--method.mask.overlap", "0", "--method.mask.shapes", bank)
    write_run(tmp_path / "run", given / "set", *masks)
    config = settings(tmp_path, tmp_path / "out", "--methods", "none", "--limit", "2")
    assert config.mask.shapes == bank
    assert evaluate(config).finished
    assert table_of(tmp_path / "out")["facts"]["mask"]["shapes"] == read_bank(bank).digest
    write_bank(bank, make_bank([[square]], Provenance("here")))
    with pytest.raises(InpaintingError, match=r"mask\.shapes: .*bank\.safetensors is another bank of shapes than the run was trained with"):
        evaluate(config)
    generated = settings(tmp_path, tmp_path / "generated", "--methods", "none", "--limit", "2", "--mask.shapes", "")
    assert evaluate(generated).finished
