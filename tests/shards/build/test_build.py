"""The promises of a build: every picture once, the same bytes after any interruption, and nothing lost without being named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.build.picture import PictureRules
from shards.build.plan import PlanSettings
from shards.check.verify import verify
from shards.dataset import index
from shards.errors import ShardError, StoreError
from shards.store import Store
from tests.shards.trees import SMALL, classed, contents, encoded, members, run, shards_only, sources, tar_of, tar_of_tars, write_folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tree"), classed())


def test_every_picture_is_stored_once_with_its_class(tree: Path, tmp_path: Path) -> None:
    result = run(tree, tmp_path / "out")
    found = members(tmp_path / "out")
    assert result.manifest.total_samples == 40 == len(found)
    assert sorted(sources(tmp_path / "out")) == sorted(classed())
    assert result.manifest.classes == ("class0", "class1", "class2", "class3")
    for sample in found.values():
        about = json.loads(sample["json"])
        assert about["label"] == about["source"].split("/")[0] == result.manifest.classes[int(sample["cls"])]
    assert [record.count for record in result.manifest.records] == [10, 10, 10, 10]


def test_a_tree_sorted_by_class_gives_mixed_shards(tree: Path, tmp_path: Path) -> None:
    data = run(tree, tmp_path / "out").manifest
    store = Store(str(tmp_path / "out"))
    for shard in range(len(data.records)):
        assert len(set(data.read_index(store, shard).rows["label"].tolist())) > 1
    assert sources(tmp_path / "out") != sorted(sources(tmp_path / "out"))


def test_the_seed_decides_the_order_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path / "a")
    run(tree, tmp_path / "b", PlanSettings(SMALL.picture, SMALL.shard_size, seed=1))
    assert sources(tmp_path / "a") != sources(tmp_path / "b")
    assert sorted(sources(tmp_path / "a")) == sorted(sources(tmp_path / "b"))


@pytest.mark.slow
def test_same_bytes_for_any_number_of_processes(tree: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(tree, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
    assert "manifest.json" in contents(tmp_path / "0")


@pytest.mark.parametrize("pack", [tar_of, tar_of_tars])
def test_a_tar_and_a_tar_of_tars_give_the_shards_of_the_folder(tree: Path, tmp_path: Path, pack: object) -> None:
    pictures = classed()
    backwards = dict(reversed(pictures.items()))  # the order inside a tar must not matter
    (tmp_path / "pictures.tar").write_bytes(pack(backwards))  # type: ignore[operator]
    run(tree, tmp_path / "a")
    run(tmp_path / "pictures.tar", tmp_path / "b")
    assert shards_only(tmp_path / "a") == shards_only(tmp_path / "b")


def test_webdataset_reads_the_keys_and_bytes_that_the_index_gives(tree: Path, tmp_path: Path) -> None:
    data = run(tree, tmp_path / "out").manifest
    store = Store(str(tmp_path / "out"))
    urls = [str(tmp_path / "out" / record.name) for record in data.records]
    theirs = [(sample["__key__"], sample["jpg"], int(sample["cls"])) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    ours = []
    for shard, url in enumerate(urls):
        tar = Path(url).read_bytes()
        for row in data.read_index(store, shard).rows:
            start, end = int(row["offset"]), int(row["offset"]) + int(row["length"])
            key = index.member_name(tar[start - 512 : start]).partition(".")[0]
            assert index.digest(tar[start:end]) == int(row["digest"])
            ours.append((key, tar[start:end], int(row["label"])))
    assert ours == theirs
    assert len({key for key, _, _ in ours}) == 40


def test_resize_none_keeps_every_byte(tree: Path, tmp_path: Path) -> None:
    png = encoded(np.zeros((9, 7, 3), np.uint8), "PNG")
    write_folder(tmp_path / "in", {**classed(4), "class0/a.jpg": png})
    run(tmp_path / "in", tmp_path / "out", PlanSettings(PictureRules(resize=None)))
    kept = {json.loads(sample["json"])["source"]: sample for sample in members(tmp_path / "out").values()}
    assert kept.pop("class0/a.jpg")["png"] == png  # named by what it is, not by what it was called
    assert {name: sample["jpg"] for name, sample in kept.items()} == classed(4)


def broken_pictures(good: bytes) -> dict[str, bytes]:
    return {
        "class0/cut.jpg": good[: len(good) // 2],
        "class0/text.jpg": b"this is no picture",
        "class1/empty.jpg": b"",
        "class1/bomb.png": encoded(np.zeros((300, 400), np.uint8), "PNG"),
        "class2/long.jpg": good + bytes(200_000),
    }


@pytest.mark.parametrize("resize", [64, None])
def test_unreadable_pictures_are_named_and_nothing_else_is_lost(tmp_path: Path, resize: int | None) -> None:
    pictures = classed()
    broken = broken_pictures(next(iter(pictures.values())))
    write_folder(tmp_path / "in", {**pictures, **broken})
    settings = PlanSettings(PictureRules(resize=resize, max_pixels=100_000, max_bytes=100_000), shard_size=7)
    result = run(tmp_path / "in", tmp_path / "out", settings)
    assert sorted(sources(tmp_path / "out")) == sorted(pictures)
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["source"] for row in listed] == sorted(broken)
    assert [(row["source"], row["reason"]) for row in listed] == list(result.rejected)
    assert result.manifest.rejected == len(broken)
    assert len(result.listing) == result.manifest.total_samples + result.manifest.rejected
    reasons = dict(result.rejected)
    assert "empty" in reasons["class1/empty.jpg"]
    assert "max_pixels" in reasons["class1/bomb.png"]
    assert "max_bytes" in reasons["class2/long.jpg"]
    assert not verify(str(tmp_path / "out"), quiet=True).problems


def test_a_shard_of_nothing_but_unreadable_pictures_is_not_written(tmp_path: Path) -> None:
    pictures = {**classed(4), **{f"class0/bad{number}.jpg": b"x" for number in range(4)}}
    write_folder(tmp_path / "in", pictures)
    result = run(tmp_path / "in", tmp_path / "out", PlanSettings(SMALL.picture, shard_size=1))
    assert len(result.manifest.records) == 4
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
    assert not verify(str(tmp_path / "out"), quiet=True).problems


def test_when_every_picture_is_unreadable_there_is_no_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", {"a.jpg": b"x", "b.jpg": b""})
    with pytest.raises(ShardError, match=r"none of 2 pictures could be stored(.|\n)*a\.jpg(.|\n)*b\.jpg: empty file"):
        run(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_building_again_finds_it_built(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run(tree, tmp_path / "out").already
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_data_set_is_replaced_only_when_told(tree: Path, tmp_path: Path) -> None:
    other = PlanSettings(PictureRules(resize=32), shard_size=3, prefix="old")
    run(tree, tmp_path / "out", other)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ShardError, match=r"shard_size was 3, now 10.*--overwrite"):
        run(tree, tmp_path / "out")
    run(tree, tmp_path / "out", overwrite=True)
    run(tree, tmp_path / "fresh")
    assert contents(tmp_path / "out") == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_shards_of_another_program_are_never_touched(tree: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "out", {"theirs-000000.tar": b"something"})
    for overwrite in (False, True):
        with pytest.raises(ShardError, match=r"theirs-000000\.tar"):
            run(tree, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path / "out") == {"theirs-000000.tar": b"something"}


def test_a_data_set_with_a_missing_shard_is_not_called_built(tree: Path, tmp_path: Path) -> None:
    run(tree, tmp_path / "out")
    (tmp_path / "out" / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar.*--overwrite"):
        run(tree, tmp_path / "out")
    run(tree, tmp_path / "out", overwrite=True)
    assert not verify(str(tmp_path / "out"), quiet=True).problems


def test_source_and_destination_may_not_lie_in_one_another(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    for destination in (tree, tree / "shards", tmp_path / "link" / "deep" / "shards", tree.parent):
        with pytest.raises(ShardError, match="lie in one another"):
            run(tree, destination)
    assert contents(tree) == classed()


def test_a_destination_that_can_not_be_written_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=f"{tmp_path}/file/out"):
        run(tree, tmp_path / "file" / "out")
    with pytest.raises(StoreError, match="/proc/shards"):
        run(tree, "/proc/shards")


def test_paths_with_spaces_and_other_alphabets(tmp_path: Path) -> None:
    pictures = {f"Schneehöhe {number}/снег ❄ [{number}]*?#%.JPG": data for number, data in enumerate(classed(4).values())}
    tree = write_folder(tmp_path / "mes photos é", pictures)
    run(tree, tmp_path / "sorti [x] é")
    assert sorted(sources(tmp_path / "sorti [x] é")) == sorted(pictures)
    assert not verify(str(tmp_path / "sorti [x] é"), quiet=True).problems


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    pictures = list(classed(4).values())
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(pictures):
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).with_name(os.fsdecode(b"\xff%d.jpg" % number))).write_bytes(data)
    assert run(folder, tmp_path / "out").manifest.total_samples == 4
    assert not verify(str(tmp_path / "out"), quiet=True).problems
