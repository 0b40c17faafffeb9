"""Indexes in a folder of their own find tars that were moved or copied together with them, and messages say where was looked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.check.verify import verify
from shards.dataset import manifest
from shards.dataset.location import place_from, relative_place
from shards.errors import ManifestMismatch
from tests.shards.adopt.foreign import ours, run, write_shards


@pytest.fixture
def together(tmp_path: Path) -> Path:
    """A folder `a` with tars in `a/set/tars`."""
    write_shards(tmp_path / "a" / "set" / "tars", 2)
    return tmp_path / "a"


@pytest.mark.parametrize("indexes", ["idx", "set/idx", "set/tars/idx", "deep/er/idx"])
def test_tars_and_indexes_that_are_moved_together_stay_together(
    together: Path, indexes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(together / "set" / "tars", together / indexes)
    before = ours(together / indexes)
    moved = together.rename(tmp_path / "b")
    assert manifest.load(str(moved / indexes)).shards_url == str(moved / "set" / "tars")
    monkeypatch.chdir(moved / indexes)
    assert ours(".") == ours(moved / indexes) == before
    assert verify(str(moved / indexes / manifest.NAME), quiet=True).problems == ()
    again = run(moved / "set" / "tars", moved / indexes)
    assert (again.read, again.manifest.shards_url) == (0, str(moved / "set" / "tars"))
    assert b"/a/" not in (moved / indexes / manifest.NAME).read_bytes()


def test_a_copy_reads_its_own_tars_and_indexes_alone_go_on_with_the_old_ones(together: Path, tmp_path: Path) -> None:
    run(together / "set" / "tars", together / "idx")
    shutil.copytree(together, tmp_path / "b")
    assert manifest.load(str(tmp_path / "b" / "idx")).shards_url == str(tmp_path / "b" / "set" / "tars")
    shutil.copytree(together / "idx", tmp_path / "c" / "idx")
    assert manifest.load(str(tmp_path / "c" / "idx")).shards_url == str(together / "set" / "tars")
    (tmp_path / "c" / "set" / "tars").mkdir(parents=True)
    (tmp_path / "c" / "set" / "tars" / "shard-000000.tar").write_bytes(b"another")
    assert manifest.load(str(tmp_path / "c" / "idx")).shards_url == str(together / "set" / "tars")


def test_a_folder_that_is_being_copied_does_not_win_over_the_whole_one(together: Path, tmp_path: Path) -> None:
    tars = together / "set" / "tars"
    write_shards(tars, 7)
    run(tars, together / "idx")
    shutil.copytree(together / "idx", tmp_path / "b" / "idx")
    copy = tmp_path / "b" / "set" / "tars"
    copy.mkdir(parents=True)
    for path in sorted(tars.glob("*.tar"))[:-1]:
        shutil.copy(path, copy)
    assert manifest.load(str(tmp_path / "b" / "idx")).shards_url == str(tars)
    (tars / "shard-000000.tar").unlink()  # both lack one: the tars beside the indexes are taken
    assert manifest.load(str(tmp_path / "b" / "idx")).shards_url == str(copy)
    shutil.copy(max(tars.glob("*.tar")), copy)
    assert manifest.load(str(tmp_path / "b" / "idx")).shards_url == str(copy)


def test_messages_say_where_tars_were_looked_for(together: Path, tmp_path: Path) -> None:
    run(together / "set" / "tars", together / "idx")
    (together / "set" / "tars" / "shard-000001.tar").unlink()
    (together / "set" / "tars" / "shard-000001.tar").symlink_to(tmp_path / "gone")
    (together / "set" / "tars" / "shard-000000.tar").unlink()
    assert [problem.what for problem in verify(str(together / "idx"), quiet=True).problems] == [
        f"missing in {together}/set/tars",
        "a link that leads nowhere",
    ]
    shutil.copytree(together / "idx", tmp_path / "b" / "idx")
    with pytest.raises(ManifestMismatch, match=f"neither in {together}/set/tars, .* nor in {tmp_path}/b/set/tars, "):
        manifest.load(str(tmp_path / "b" / "idx"))


@pytest.mark.parametrize(
    ("shards", "indexes", "place", "copied", "found"),
    [
        ("/d/tars", "/d/idx", "../tars", "/other/disk/idx", "/other/disk/tars"),
        ("/d/tars", "/d/tars/idx", "..", "/x", "/"),
        ("s3://b/train/tars", "s3://b/train/idx", "../tars", "s3://c/train/idx", "s3://c/train/tars"),
        ("s3://b/tars", "s3://b/idx", "../tars", "/local/idx", "/local/tars"),
        ("file:///d/tars", "/d/idx", "../tars", "file:///e/idx", "/e/tars"),
        ("s3://b/tars", "s3://c/idx", "", "s3://c/idx", "s3://c/idx"),
        ("s3://b/tars", "/d/idx", "", "/d/idx", "/d/idx"),
        ("/d/tars", "/e/idx", "", "/e/idx", "/e/idx"),
    ],
)
def test_the_relative_place_of_shards(shards: str, indexes: str, place: str, copied: str, found: str) -> None:
    assert relative_place(shards, indexes) == place
    assert place_from(copied, place) == found
    assert not place or place_from(indexes, place) == shards.removeprefix("file://")
