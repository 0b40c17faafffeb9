"""Sources that hold more than classes of pictures: folders of tools, splits, and WebDataset shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.__main__ import main
from shards.build.sources import Listing, open_source
from shards.errors import SourceError
from tests.datasets import photographs
from tests.shards.trees import tar_of, tar_of_tars, write_folder

CLASSES = {"cat/0.jpg": b"1", "dog/1.jpg": b"22"}
LEFT_BEHIND = {  # file -> its part that is left out
    "@eaDir/cat/0.jpg/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
    "__MACOSX/cat/._0.jpg": "__MACOSX",
    "lost+found/#12.jpg": "lost+found",
    "cat/.ipynb_checkpoints/0-checkpoint.jpg": "cat/.ipynb_checkpoints",
    "cat/.Trash-1000/files/2.jpg": "cat/.Trash-1000",
    "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg": "cat/@eaDir",
    "cat/._0.jpg": "cat/._0.jpg",
}
SPLITS = {"train/cat/0.jpg": b"1", "train/dog/1.jpg": b"22", "val/cat/2.jpg": b"333", "val/dog/3.jpg": b"4444", "val/dog/4.jpg": b"5"}


def packed(folder: Path, files: dict[str, bytes], pack: str) -> str:
    """Writes a source; returns its path."""
    if pack == "folder":
        return str(write_folder(folder / "in", files))
    if pack == "folder of tars":
        inner: dict[str, dict[str, bytes]] = {}
        for name, data in files.items():
            head, _, tail = name.partition("/")
            inner.setdefault(f"{head}.tar", {})[tail] = data
        return str(write_folder(folder / "in", {name: tar_of(members) for name, members in inner.items()}))
    (folder / "in.tar").write_bytes(tar_of(files) if pack == "tar" else tar_of_tars(files))
    return str(folder / "in.tar")


def labels(listing: Listing) -> dict[str, str | None]:
    return {entry.name: entry.label for entry in listing}


@pytest.mark.parametrize("pack", ["folder", "tar", "tar of tars"])
def test_hidden_and_tool_folders_are_left_out_and_counted(tmp_path: Path, pack: str) -> None:
    listing = open_source(packed(tmp_path, {**CLASSES, **dict.fromkeys(LEFT_BEHIND, b"1")}, pack))
    assert labels(listing) == {"cat/0.jpg": "cat", "dog/1.jpg": "dog"}
    assert set(listing.hidden) == set(LEFT_BEHIND.values())
    assert not listing.other


def test_a_tool_folder_that_can_not_be_listed_is_not_entered(tmp_path: Path) -> None:
    write_folder(tmp_path, {**CLASSES, "lost+found/x.jpg": b"1"})
    (tmp_path / "lost+found" / "round").symlink_to(tmp_path)
    assert open_source(str(tmp_path)).hidden == ("lost+found",)


def test_a_source_of_nothing_but_hidden_files_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path, {".cache/0.jpg": b"1"})
    with pytest.raises(SourceError, match=r"no pictures.*left out: 1 \(\.cache\)"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("pack", ["folder", "tar", "folder of tars"])
def test_splits_are_named_and_not_mixed_unasked(tmp_path: Path, pack: str) -> None:
    source = packed(tmp_path, SPLITS, pack)
    for more in ({}, {"labels": "none"}, {"label_pattern": "([^/]+)/[^/]+$"}):
        with pytest.raises(SourceError, match=r"pictures: train 2, val 3.*--split train, or all together with --split all"):
            open_source(source, **more)  # type: ignore[arg-type]
    assert labels(open_source(source, include=["train/*"])) == {"train/cat/0.jpg": None, "train/dog/1.jpg": None}
    chosen = open_source(source, split="validation")
    assert labels(chosen) == {"val/cat/2.jpg": "cat", "val/dog/3.jpg": "dog", "val/dog/4.jpg": "dog"}
    assert [entry.length for entry in chosen] == [3, 4, 1]
    assert chosen.other_splits == {"train": 2}
    every = open_source(source, split="all")
    assert (len(every), every.classes, every.other_splits) == (5, ("cat", "dog"), {})
    with pytest.raises(SourceError, match=r"has no split test \(train 2, val 3\)"):
        open_source(source, split="test")


CLASSES_NAMED_AS_SPLITS = {"train/0.jpg": b"1", "bus/1.jpg": b"22", "test/2.jpg": b"333"}
PEOPLE = {"Dev/0.jpg": b"1", "Val/1.jpg": b"22", "Bob/2.jpg": b"333"}
CLASS_FIRST = {"cat/train/0.jpg": b"1", "cat/test/1.jpg": b"22", "dog/train/2.jpg": b"333", "dog/test/3.jpg": b"4444"}


@pytest.mark.parametrize(
    ("files", "split", "classes"),
    [
        (CLASSES_NAMED_AS_SPLITS, "all", ("bus", "test", "train")),
        (PEOPLE, "all", ("Bob", "Dev", "Val")),
        (CLASS_FIRST, "all", ("cat", "dog")),
        (CLASS_FIRST, "train", ("cat", "dog")),
        (CLASSES_NAMED_AS_SPLITS, "train", ()),
        ({"train/0.jpg": b"1", "test/1.jpg": b"22"}, "all", ()),
    ],
)
def test_folders_around_splits_or_beside_them_are_classes(
    tmp_path: Path, files: dict[str, bytes], split: str, classes: tuple[str, ...]
) -> None:
    source = packed(tmp_path, files, "folder")
    with pytest.raises(SourceError) as refused:
        open_source(source)
    assert "--split all --label-pattern '^([^/]+)/'" in str(refused.value)
    listing = open_source(source, split=split)
    assert listing.classes == classes
    assert {name: label for name, label in labels(listing).items() if label} == {
        name: name.partition("/")[0] for name in labels(listing) if classes
    }
    first_folders = tuple(sorted({name.partition("/")[0] for name in files}))
    assert open_source(source, split="all", label_pattern="^([^/]+)/").classes == first_folders
    if files is not CLASS_FIRST:  # in which each class is of several splits
        assert open_source(source, label_pattern="^([^/]+)/").classes == first_folders


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    listing = open_source(packed(tmp_path, {"bicycle/0.jpg": b"1", "train/1.jpg": b"2"}, "folder"))
    assert listing.classes == ("bicycle", "train")
    with pytest.raises(SourceError, match="no folder is named train, val"):
        open_source(packed(tmp_path / "plain", CLASSES, "folder"), split="train")


WEBDATASET = {
    "with labels": {"0.jpg": b"1", "0.cls": b"3"},
    "with notes": {"0.jpg": b"1", "0.json": b"{}"},
    "of pictures alone": {"0.jpg": b"1"},
}


@pytest.mark.parametrize("names", ["shard-{:06d}.tar", "{:05d}.tar", "x-train-{:05d}-of-00003.tar", "train/{:04d}.tar"])
@pytest.mark.parametrize("kind", WEBDATASET)
def test_webdataset_shards_are_no_classes(tmp_path: Path, kind: str, names: str) -> None:
    write_folder(tmp_path, {names.format(number): tar_of(WEBDATASET[kind]) for number in range(3)})
    with pytest.raises(SourceError, match=f"python -m shards index {tmp_path}; or .*--labels none"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match=f"python -m shards index {tmp_path}") as caught:
        open_source(str(tmp_path), needs_labels=True)
    assert "--labels" not in str(caught.value)
    assert set(labels(open_source(str(tmp_path), labels="none")).values()) == {None}


def test_one_webdataset_shard_is_refused_and_tars_of_classes_are_not(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(WEBDATASET["with labels"]))
    with pytest.raises(SourceError, match=r"labels are in files such as 0\.cls"):
        open_source(str(tmp_path / "x.tar"))
    with pytest.raises(SourceError, match=r"python -m shards index [^;]*x\.tar$"):
        open_source(str(tmp_path / "x.tar"), needs_labels=True)
    tars = {f"n{number:08d}.tar": tar_of({"0.JPEG": b"1", "0.json": b"{}"}) for number in (1440764, 1443537)}
    assert open_source(str(write_folder(tmp_path / "imagenet", tars))).classes == ("n01440764", "n01443537")
    tars = {f"{name}/{number:04d}.tar": tar_of({"0.jpg": b"1"}) for name in ("cat", "dog") for number in range(2)}
    assert open_source(str(write_folder(tmp_path / "parts", tars))).classes == ("cat", "dog")


def test_the_command_names_what_may_be_no_class_or_no_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph, other, mask = photographs(3, 32, 32)
    source = write_folder(tmp_path / "in", {"set.v1/cat/0.jpg": photograph, "set.v1/cat/0.png": mask, "set.v1/dog/1.jpg": other})
    assert main(["build", str(source), str(tmp_path / "out"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert r"classes: none" in said
    assert "names that differ in the extension alone: 1; all are stored" in said
    pattern = said.partition("--label-pattern '")[2].partition("'\n")[0]
    assert open_source(str(source), label_pattern=pattern).classes == ("cat", "dog")
    assert (open_source(str(source / "set.v1")).folder_around, open_source(str(source / "set.v1" / "cat")).doubles) == ("", 1)


@pytest.mark.parametrize("extension", ["jfif", "jpe", "JPG", "pgm", "pnm"])
def test_less_known_extensions_of_known_formats_are_pictures(tmp_path: Path, extension: str) -> None:
    files = {f"a/0.{extension}": b"1", "b/1.avif": b"2"}
    listing = open_source(packed(tmp_path, files, "folder"))
    assert ([entry.name for entry in listing], listing.other) == ([f"a/0.{extension}"], {".avif": 1})


def test_the_command_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = photographs(5, 32, 32)
    files = {name: pictures[number] for number, name in enumerate(SPLITS)}
    source = write_folder(tmp_path / "in", {**files, ".git/0.jpg": b"1", "val/@eaDir/0.jpg": b"1"})
    build = ["build", str(source), str(tmp_path / "out"), "--workers", "0"]
    assert main(build) == 1
    assert "holds several splits (pictures: train 2, val 3)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert main([*build, "--split", "train"]) == 0
    said = capsys.readouterr().out
    assert "classes: 2\n  hidden or of a tool, left out: 2 (.git, @eaDir)\n  pictures of other splits, left out: val 3\n" in said
