"""`launch/inpaint.py`: which pictures it fills and how it writes them, and what it refuses in one line."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from launch.inpaint import main
from tests.conftest import ROOT
from tests.launching import clean_environment, python
from tests.pipeline.evaluation.runs import write_run

HOLE = ("--hole", "20,10,12,9")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(made_once: Callable[[str, Callable[[Path], object]], Path]) -> str:
    return str(made_once("inpainting run", lambda folder: write_run(folder, "inpainting")))


def drawn(mode: str, height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture of a mode of Pillow; alpha is 0 in a part of it."""
    y, x = np.mgrid[:height, :width]
    rgba = np.stack([x * 4, y * 6, x + y, np.where(x < 25, 0, 200)], 2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((x * 1000 + y).astype(np.uint16))
    if mode == "F":
        return Image.fromarray(x.astype(np.float32))
    picture = Image.fromarray(rgba)
    if mode == "P with transparency":
        palette = picture.convert("RGB").quantize(16)
        palette.info["transparency"] = 3
        return palette
    return picture.convert("RGB").quantize(16) if mode == "P" else picture.convert(mode)


def file_of(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(picture: Image.Image, mode: str) -> NDArray[np.generic]:
    """The pixels of a picture, upright, in the mode that a result has."""
    upright = ImageOps.exif_transpose(picture)
    return np.asarray(upright if mode.startswith("I") else upright.convert(mode))


TABLE = {
    "grey": (lambda: file_of(drawn("L"), "PNG"), "L"),
    "grey with alpha": (lambda: file_of(drawn("LA"), "PNG"), "LA"),
    "colour": (lambda: file_of(drawn("RGB"), "PNG"), "RGB"),
    "colour with alpha": (lambda: file_of(drawn("RGBA"), "PNG"), "RGBA"),
    "one transparent colour": (lambda: file_of(drawn("RGB"), "PNG", transparency=(0, 0, 0)), "RGBA"),
    "palette": (lambda: file_of(drawn("P"), "PNG"), "RGB"),
    "palette with transparency": (lambda: file_of(drawn("P with transparency"), "PNG"), "RGBA"),
    "black and white": (lambda: file_of(drawn("1"), "PNG"), "L"),
    "16-bit grey": (lambda: file_of(drawn("I;16"), "PNG"), "I;16"),
    "16-bit grey TIFF": (lambda: file_of(drawn("I;16"), "TIFF"), "I;16"),
    "JPEG": (lambda: file_of(drawn("RGB"), "JPEG"), "RGB"),
    "grey JPEG": (lambda: file_of(drawn("L"), "JPEG"), "L"),
    "WebP with alpha": (lambda: file_of(drawn("RGBA"), "WEBP", lossless=True, exact=True), "RGBA"),
    "BMP": (lambda: file_of(drawn("RGB"), "BMP"), "RGB"),
    "GIF of one frame": (lambda: file_of(drawn("P"), "GIF"), "RGB"),
}
"""Name of a picture -> a function that gives its file, and the mode of the result."""

REFUSED = {
    "16-bit colour": (cv2.imencode(".png", np.full((40, 60, 3), 999, np.uint16))[1].tobytes, "16 bits a colour, of which 8"),
    "16-bit colour PPM": (lambda: b"P6 2 2 65535\n" + bytes(24), "16 bits a colour, of which 8"),
    "CMYK": (lambda: file_of(drawn("CMYK"), "JPEG"), "the colours of a printer (CMYK)"),
    "floating point": (lambda: file_of(drawn("F"), "TIFF"), "values without an agreed range"),
    "animated": (
        lambda: file_of(drawn("RGB"), "GIF", save_all=True, append_images=[drawn("L").convert("RGB")]),
        "has 2 frames. Save the one to fill",
    ),
    "cut short": (lambda: file_of(drawn("RGB"), "PNG")[:100], "can't be decoded"),
    "cut JPEG": (lambda: file_of(drawn("RGB", 300, 300), "JPEG")[:-800], "can't be decoded"),
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"<!doctype html>", "a web page (HTML)"),
}
"""Name of a file -> a function that gives it, and the words of the error."""


@pytest.mark.parametrize("name", TABLE)
def test_a_picture_is_filled_in_its_hole_alone(name: str, run: str, tmp_path: Path) -> None:
    make, mode = TABLE[name]
    source = tmp_path / "picture.x"
    source.write_bytes(make())
    before = source.read_bytes()
    assert main([run, str(source), *HOLE]) == 0
    assert source.read_bytes() == before
    original, result = Image.open(source), Image.open(tmp_path / "picture.inpainted.png")
    assert result.mode == mode
    was, now = decoded(original, mode), decoded(result, mode)
    assert now.dtype == was.dtype
    assert now.shape == was.shape
    hole = np.zeros(was.shape[:2], np.bool_)
    hole[10:19, 20:32] = True
    assert np.array_equal(now[~hole], was[~hole])
    assert (now[hole] != was[hole]).mean() > 0.3
    if mode in ("LA", "RGBA"):
        assert np.array_equal(now[..., -1], was[..., -1])


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_can_not_be_kept_is_refused_in_one_line(name: str, run: str, tmp_path: Path, capsys: Capture) -> None:
    make, words = REFUSED[name]
    source = tmp_path / "picture.x"
    source.write_bytes(make())
    assert main([run, str(source), *HOLE]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {source}: ")
    assert words in said
    assert said.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["picture.x"]


def test_a_turned_jpeg_becomes_upright_and_keeps_its_profile_alone(run: str, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    source = tmp_path / "turned.jpg"
    source.write_bytes(file_of(drawn("RGB"), "JPEG", exif=exif, icc_profile=profile))
    mask = np.zeros((60, 40), np.uint8)
    mask[50:, 30:], mask[5:9, 5:9] = 255, 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert main([run, str(source), "--mask", str(tmp_path / "mask.png")]) == 0
    result = Image.open(tmp_path / "turned.inpainted.png")
    assert result.size == (40, 60)
    assert not result.getexif()
    assert result.info["icc_profile"] == profile
    was = decoded(Image.open(source), "RGB")
    assert np.array_equal(np.asarray(result)[mask == 0], was[mask == 0])


def test_the_result_is_written_as_asked_and_never_over_the_picture(run: str, tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "a.png"
    drawn("RGBA").save(source)
    assert main([run, str(source), *HOLE, "--out", str(tmp_path / "b.webp")]) == 0
    assert np.array_equal(decoded(Image.open(tmp_path / "b.webp"), "RGBA")[30:], decoded(Image.open(source), "RGBA")[30:])
    assert "step 20 of recipe inpainting" in capsys.readouterr().out
    link = tmp_path / "link.png"
    link.symlink_to(source)
    (tmp_path / "full.png").write_bytes(b"mine")
    refused = {
        ("--out", str(source), "--overwrite"): "is the picture itself, which is never replaced",
        ("--out", str(link), "--overwrite"): "is the picture itself, which is never replaced",
        ("--out", str(tmp_path / "full.png")): "exists. Name another file with --out, or give --overwrite",
        ("--out", str(tmp_path / "c.jpg")): "JPEG has no transparency",
        ("--out", str(tmp_path / "c.tiff")): "a result is written as .png, .jpg, .jpeg, .webp",
        ("--out", str(tmp_path / "none" / "c.png")): "its folder does not exist",
        ("--max-pixels", "2000"): "60 x 40 pixels are more than --max-pixels, 2000",
        ("--device", "cuda:99"): "--device cuda:99: can't be used",
        ("--step", "7"): "step_000000007",
    }
    for options, words in refused.items():
        assert main([run, str(source), *HOLE, *options]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert (tmp_path / "full.png").read_bytes() == b"mine"
    assert main([run, str(source), *HOLE, "--out", str(tmp_path / "full.png"), "--overwrite"]) == 0
    first = (tmp_path / "full.png").read_bytes()
    assert main([run, str(source), *HOLE, "--out", str(tmp_path / "full.png"), "--overwrite"]) == 0
    assert (tmp_path / "full.png").read_bytes() == first, "deterministic"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "b.webp", "full.png", "link.png"]


def test_a_hole_is_clipped_at_the_border_and_refused_outside(run: str, tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "a.jpg"
    drawn("RGB").save(source)
    out = ("--out", str(tmp_path / "b.jpg"), "--overwrite")
    assert main([run, str(source), "--hole", "-5,-4,10,10", "--hole", "50,30,99,99", *out]) == 0
    said = capsys.readouterr().out
    assert "hole 5 x 6 at 0,0:" in said
    assert "hole 10 x 10 at 50,30:" in said
    assert "130 pixels filled" in said
    assert "note: JPEG is lossy" in said
    Image.new("L", (60, 41)).save(tmp_path / "size.png")
    Image.new("L", (60, 40)).save(tmp_path / "empty.png")
    Image.new("L", (60, 40), 255).save(tmp_path / "full.png")
    refused = {
        ("--hole", "60,0,5,5"): "lies outside the picture, which is 60 x 40 pixels",
        ("--hole", "1,2,3"): "--hole 1,2,3: is not x,y,w,h",
        ("--hole", "1,2,0,3"): "holds none",
        ("--mask", str(tmp_path / "size.png")): "is 60 x 41 pixels, and the picture, turned upright, is 60 x 40",
        ("--mask", str(tmp_path / "empty.png")): "nothing is to be filled",
        ("--mask", str(tmp_path / "full.png")): "hides the whole picture",
        ("--mask", str(tmp_path / "none.png")): "none.png: the mask can't be read (No such file or directory). Name the file of a mask",
        ("--mask", str(tmp_path)): "the mask can't be read (Is a directory)",
        ("--mask", str(tmp_path / "size.png"), "--out", str(tmp_path / "." / "size.png")): "is the mask itself, which is never replaced",
    }
    for options, words in refused.items():
        assert main([run, str(source), *out, *options]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main([run, str(tmp_path / "no.png"), *HOLE]) == 1
    assert "no.png: the picture can't be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["r"],
        ["r", "p.png"],
        ["r", "p.png", "--hole", "1,1,1,1", "--mask", "m"],
        ["r", "p.png", "--serve"],
        ["r", "p.png", *HOLE, "--max-pixels", "0"],
    ],
)
def test_a_command_line_that_says_too_little_or_too_much_is_refused(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_run_that_can_not_paint_and_a_package_that_is_missing_are_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn("RGB").save(tmp_path / "a.png")
    write_run(tmp_path / "autoencoder", "torchvision")
    for run, words in (("autoencoder", "'autoencoder' does not learn to fill holes"), ("none", "no checkpoint")):
        assert main([str(tmp_path / run), str(tmp_path / "a.png"), *HOLE]) == 1
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "pipeline.evaluation.picture.server", raising=False)
    assert main([str(tmp_path / "autoencoder"), "--serve"]) == 1
    assert capsys.readouterr().err == "error: uvicorn is not installed: pip install -e '.[serve]'\n"


@pytest.mark.slow  # a start of the program
def test_ctrl_c_ends_the_page_cleanly(run: str) -> None:
    command = [python(), "launch/inpaint.py", run, "--serve"]
    program = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        url = next(word for word in program.stdout.readline().split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own server
            assert b"Fill a hole" in answer.read()
        program.send_signal(signal.SIGINT)
        out, errors = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, out, errors) == (0, "the page is closed; nothing of the pictures was kept\n", "")
