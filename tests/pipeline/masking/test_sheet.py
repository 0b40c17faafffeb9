"""The sheet of masks and its command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.masking import CentralRegion
from pipeline.masking.__main__ import main
from pipeline.masking.sheet import draw_sheet
from pipeline.masking.statistics import measure
from tests.pipeline.masking.banks import bank_file


def test_a_sheet_shows_64_masks(tmp_path: Path) -> None:
    draw_sheet(tmp_path / "sheet.png", CentralRegion(), 16, [])
    image = Image.open(tmp_path / "sheet.png")
    cells = np.array(image)[12:].reshape(8, 22, -1)[:, :16, 6:].reshape(8, 16, 8, 22)[..., :16]
    assert image.mode == "P"
    assert (cells[:, 4:12, :, 4:12] == 2).all()
    assert (cells == 2).sum() == 64 * 8 * 8


def test_statistics_count_what_is_drawn() -> None:
    found = measure(CentralRegion(), 16, 5)
    assert (found.least, found.mean, found.most) == (0.25, 0.25, 0.25)
    assert (found.rarest, found.commonest, found.repeated, found.rectangles) == (0, 1, 4, 0)


@pytest.mark.parametrize(
    ("words", "first", "limits"),
    [
        (["BANK"], "region, 3 shapes of a test", (0.1, 0.25)),
        (["", "--mean-fraction", "0.15", "--max-fraction", "0.3"], "region, generated shapes", (0.1, 0.3)),
        (["", "--kind", "block", "--min-fraction", "0.05"], "block", (0.05, 0.25)),
        (["", "--kind", "noise_pattern", "--max-fraction", "0.25"], "noise_pattern", (0.2, 0.25)),
    ],
)
def test_the_command_writes_a_sheet_of_every_kind(
    words: list[str], first: str, limits: tuple[float, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [bank_file(tmp_path / "bank") if word == "BANK" else word for word in words]
    target = tmp_path / "sheet.png"
    assert main([words[0], str(target), "--size", "32", "--draws", "70", *words[1:]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [first, "70 masks of 32 x 32 pixels, of which the first are shown"]
    low, high = (float(shown[2].split(": ")[1].split()[place].rstrip("%,")) / 100 for place in (0, 2))
    assert limits[0] - 0.01 <= low < high <= limits[1] + 1e-4
    assert shown[-1] == f"wrote {target}"
    with Image.open(target) as image:
        image.load()
    assert target.stat().st_size < 100_000


def test_the_sheet_never_replaces_its_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = bank_file(tmp_path / "bank")
    before = (tmp_path / "bank").read_bytes()
    assert main([bank, bank]) == 1
    assert capsys.readouterr().err.startswith(f"error: {bank}: is the bank of shapes itself")
    assert (tmp_path / "bank").read_bytes() == before


def test_a_number_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["", "sheet.png", "--draws", "x"])
    assert capsys.readouterr().err.endswith("error: argument --draws: 'x' is no whole number\n")


def test_an_interrupt_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.masking.__main__.measure", interrupt)
    assert main(["", str(tmp_path / "sheet.png")]) == 130
    assert capsys.readouterr().err == "interrupted. Nothing was written\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: nowhere: no such file"),
        (["", "--kind", "blocks"], "error: kind: 'blocks' is not one of"),
        (["", "--mean-fraction", "0.3"], "error: settings.mean_fraction: 0.3 is not between"),
        (["", "--mean-fraction", "0.245"], "error: mean_fraction: 0.245 can't be the mean of masks of 16 x 16 pixels"),
        (["nowhere", "--kind", "block"], "error: BANK: masks of the kind 'block' take no shapes. Give '' for BANK"),
        (["", "--kind", "noise_pattern", "--min-fraction", "0.4"], "error: settings.noise_fractions: 0.4 and 0.3 are not"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([words[0], "sheet.png", "--size", "16", "--draws", "9", *words[1:]]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()
