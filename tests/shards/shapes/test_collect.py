"""A folder of label pictures becomes a bank, the same with any number of threads; what can't be read is named, what is left out counted."""

from __future__ import annotations

import shlex
from functools import partial
from http.server import SimpleHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from shards.__main__ import main
from shards.errors import ShapesError
from shards.local_files import whole_file
from shards.shapes.bank import read_bank
from shards.shapes.collect import collect
from shards.shapes.labels import ShapeRules
from tests.shards.shapes.label_pictures import GREY, RGB, png, square, voc
from tests.shards.web_servers import answering


def sizes(folder: Path | str, **options: object) -> list[float]:
    """Areas of the squares of a source, in the order of the bank, by their extents in half pixels."""
    bank = collect(str(folder), quiet=True, **options).bank
    edges = np.concatenate([[0], np.cumsum(bank.arrays["vertices"])])
    return [float(np.ptp(bank.arrays["points"][a:b], axis=0).prod()) / 4 for a, b in pairwise(edges)]


def test_the_layout_of_voc_is_read_with_its_lists(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2012")
    found = collect(str(tmp_path / "VOC2012"), quiet=True)
    origin = found.bank.provenance
    assert (origin.kind, origin.pictures, origin.objects, origin.void_pixels) == ("voc", 3, 3, 50 + 900)
    assert list(found.without_objects) == ["SegmentationObject/c.png"]
    assert sizes(tmp_path / "VOC2012") == [600, 900, 1600]
    assert sizes(tmp_path / "VOC2012", split="train") == [600, 900]
    assert sizes(tmp_path / "VOC2012", split="val") == [1600]
    assert collect(str(tmp_path / "VOC2012"), split="train", quiet=True).bank.provenance.split == "train"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", r"ImageSets/Segmentation/test\.txt: there is no such list. Lists that are there: empty, gone, train, val"),
        ("gone", r"gone\.txt: lists 3 pictures, 2 of which are not there: SegmentationObject/x\.png, SegmentationObject/y\.png. Copy"),
        ("empty", r"empty\.txt: the list is empty"),
        ("../../a", "leaves the folder"),
    ],
)
def test_a_list_that_can_not_choose_is_refused(split: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message) as caught:
        collect(str(voc(tmp_path)), split=split, quiet=True)
    assert main(["shapes", str(tmp_path), f"{tmp_path}/bank", "--split", split]) == 1
    assert not (tmp_path / "bank").exists()
    assert "\n" not in str(caught.value)


def test_any_folder_of_pngs_is_read_in_the_order_of_the_names(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    files = {
        "b.png": png(square(300, 25), GREY, 16),
        "a.PNG": png(square(1, 20), GREY, 1),
        "deeper/c.png": png(square(9, 40), GREY, 8),
        ".ipynb_checkpoints/a.png": png(square(1, 39)),
        "a.jpg": b"\xff\xd8\xff",
        "README": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert sizes(tmp_path) == [400, 625, 1600]
    found = collect(str(tmp_path), quiet=True)
    assert found.bank.provenance.kind == "folder"
    assert dict(found.pictures.other) == {".jpg": 1, "no extension": 1}
    assert found.pictures.hidden == {".ipynb_checkpoints"}


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03}.png").write_bytes(png(square(1, 20 + number % 25)))
    (folder / "000.png").write_bytes(png(np.random.default_rng(0).integers(0, 2, (300, 300))))  # the slowest comes first
    for threads in (1, 2, 7):
        assert main(["shapes", str(folder), str(tmp_path / f"bank{threads}"), "--threads", str(threads), "--min-pixels", "1"]) == 0
    assert len({(tmp_path / f"bank{threads}").read_bytes() for threads in (1, 2, 7)}) == 1


BROKEN = {
    "colours": (png(square(), RGB), "holds RGB colours, not indices of objects"),
    "cut short": (png(square())[:-30], "PNG cut short or damaged"),
    "empty": (b"", "empty file"),
    "bomb": (png(square(), size=(50_000, 50_000)), "50,000 x 50,000 pixels are more than --max-pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_picture_ends_the_command_with_its_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, message = BROKEN[name]
    folder = voc(tmp_path / "VOC2012")
    (folder / "SegmentationObject" / "b.png").write_bytes(data)
    (folder / "SegmentationObject" / "d.png").write_bytes(b"broken too")
    assert main(["shapes", str(folder), str(tmp_path / "bank")]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(f"error: {folder}/SegmentationObject/b.png: {message}")
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "bank").exists()


def test_a_source_that_gives_no_shape_is_refused(tmp_path: Path) -> None:
    for name, labels, message in (
        ("small", square(1, 19), r"1 object, and none gives a shape \(smaller than --min-pixels 1\). Lower --min-pixels"),
        ("background", square(0), r"no objects in 1 label picture: every pixel is background \(0\)$"),
        ("mask", square(255), "900 pixels are void; if those are the objects, add --void none"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(labels, GREY))
        with pytest.raises(ShapesError, match=f"{name}: .*{message}"):
            collect(str(tmp_path / name), quiet=True)
    assert sizes(tmp_path / "mask", rules=ShapeRules(void=None)) == [900]
    assert sizes(tmp_path / "small", rules=ShapeRules(min_pixels=361)) == [361]


def test_a_source_that_is_none_is_refused_with_advice(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    (tmp_path / "VOC.tar").write_bytes(b"")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    for name, message in (
        ("VOCdevkit", r"holds the layout of PASCAL VOC in a folder below. Give that folder: .*/VOCdevkit/VOC2012$"),
        ("VOC.tar", "is a file, and label pictures are read from a folder. Unpack it"),
        ("missing", "there is no such folder"),
        ("photographs", r"no label pictures \(PNG\) in this folder"),
    ):
        with pytest.raises(ShapesError, match=f"{name}: {message}"):
            collect(str(tmp_path / name), quiet=True)
    with pytest.raises(ShapesError, match="Leave --split out"):
        collect(str(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationObject"), split="train", quiet=True)


def test_the_command_says_what_it_read_and_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, url = voc(tmp_path / "VOC2012"), f"{tmp_path}/shapes"
    assert main(["shapes", str(folder), url, "--min-pixels", "700"]) == 0
    out, err = capsys.readouterr()
    bank = read_bank(url)
    assert out.splitlines() == [
        url,
        f"  2 shapes, {Path(url).stat().st_size} bytes, digest {bank.digest}",
        "  from 3 objects of 3 label pictures in the layout of PASCAL VOC; 950 pixels void",
        "  left out, smaller than --min-pixels: 1 object",
        "  without objects: 1 picture (SegmentationObject/c.png)",
        f"next: train with --method.mask.shapes {url}",
    ]
    assert err == ""
    assert bank.origin == str(folder)
    assert main(["shapes", str(folder), url]) == 1
    assert "is a bank of shapes already" in capsys.readouterr().err
    assert main(["shapes", str(folder), url, "--overwrite"]) == 0
    assert len(read_bank(url).silhouettes) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--void", "0"], "--void 0: give an index from 1 to 65535, or none"),
        (["--void", "-1"], "--void -1: give"),
        (["--min-pixels", "0"], "--min-pixels 0: give 1 or more"),
        (["--threads", "-1"], "--threads -1: give 0 or more"),
        (["--storage", "secret"], "a --storage option is KEY=VALUE"),
        (["--max-bytes", "100"], "a.png: 887 bytes are more than --max-bytes, 100"),
    ],
)
def test_a_wrong_setting_is_named(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", str(voc(tmp_path / "VOC2012")), str(tmp_path / "bank"), *words]) == 1
    assert message in capsys.readouterr().err


def test_sources_and_banks_lie_anywhere(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2012")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "VOC2012"), "memory://collect/VOC2012", recursive=True)
    assert main(["shapes", "memory://collect/VOC2012", "memory://collect/bank", "--split", "train"]) == 0
    local = collect(str(tmp_path / "VOC2012"), split="train", quiet=True).bank
    assert read_bank("memory://collect/bank").digest == local.digest
    with answering(partial(SimpleHTTPRequestHandler, directory=tmp_path)) as url:
        assert collect(f"{url}/VOC2012", split="train", quiet=True).bank.digest == local.digest
        with pytest.raises(ShapesError, match="no label pictures"):
            collect(f"{url}/VOC2012/JPEGImages", quiet=True)


def test_a_sheet_of_masks_is_drawn_of_a_bank_anywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, url, sheet = str(voc(tmp_path / "VOC2012")), "memory://sheet/bank", tmp_path / "sheet.png"
    assert main(["shapes", folder, url, "--sheet", str(tmp_path / "missing" / "sheet.png")]) == 1
    assert "its folder does not exist" in capfd.readouterr().err
    assert main(["shapes", folder, url, "--sheet", str(sheet)]) == 0
    assert f"3 shapes of {folder}" in capfd.readouterr().out
    with Image.open(sheet) as picture:
        assert min(picture.size) > 500


def test_an_interrupted_sheet_leaves_the_bank_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, url = tmp_path / "sheet.png", f"{tmp_path}/it's $HOME"
    Image.new("1", (1, 1)).save(sheet)  # an older sheet, which is no new one
    finished = False

    def interrupt(*_: object, **__: object) -> None:
        if finished:
            with whole_file(sheet) as file:
                file.write(b"drawn")
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.run", interrupt)
    words = ["shapes", str(voc(tmp_path / "VOC2012")), url, "--sheet", str(sheet)]
    assert main(words) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("interrupted. The bank is written, the sheet is not")
    finished = True
    assert main([*words, "--overwrite"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted. The bank and the sheet are written"
    assert len(read_bank(url).silhouettes) == 3
    assert shlex.split(out.splitlines()[-1])[-2:] == ["--method.mask.shapes", f"{tmp_path}/it's $$HOME"]


def test_photographs_in_place_of_labels_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grey").mkdir()
    noise = np.random.default_rng(0).integers(1, 5, (90, 90))
    noise[:30, :30] = 9
    (tmp_path / "grey" / "a.png").write_bytes(png(noise, GREY))
    assert main(["shapes", str(tmp_path / "grey"), str(tmp_path / "bank")]) == 0
    assert "  warning: most objects are ragged or scattered: these look like photographs, not labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("bank", "bank: is the bank of shapes itself"),
        ("link/bank", "bank: is the bank of shapes itself"),
        ("folder", "folder: is a folder. A sheet of masks is one PNG"),
        ("notes.txt", "notes.txt: is there already and is no PNG"),
        ("missing/sheet.png", "missing/sheet.png: its folder does not exist"),
    ],
)
def test_a_sheet_that_would_replace_something_else_is_refused_first(
    sheet: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["shapes", str(voc(tmp_path / "VOC2012")), str(tmp_path / "bank"), "--sheet", str(tmp_path / sheet)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bank").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_real_objects_all_become_shapes(data_folder: Path) -> None:
    folder = data_folder / "bsds_voc_layout" / "VOC2012"
    found = collect(str(folder), split="val", quiet=True)
    assert (found.bank.provenance.pictures, found.bank.provenance.objects) == (100, 551)
    assert len(found.bank.silhouettes) == 551
