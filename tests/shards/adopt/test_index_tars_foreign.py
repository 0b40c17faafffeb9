"""Files of other programs beside the tars are never touched; tars and samples that are links are never lost silently."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from pathlib import Path

import pytest

from shards.adopt.index_tars import as_text
from shards.check.verify import verify
from shards.dataset.index import Rules
from shards.errors import ShardError, SourceError, StoreError
from shards.store import Store
from shards.tar.listing import list_tars
from tests.shards.adopt.foreign import counted, ours, picture, plain_tar, run, served, theirs, write_shards
from tests.shards.trees import contents, tar_of, write_folder


@pytest.mark.parametrize(
    "theirs",
    [
        {"_build/precious.txt": b"mine"},
        {"_build/deep/precious.json": b"mine"},
        {"_build/index.json": b"{}"},
        {"_build/index.json": b"no json"},
        {"_build": b"a file"},
        {"rejected.jsonl": b"mine"},
        {"shard-000000.tar.idx": b"another program's index"},
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_what_is_not_ours_is_refused_and_left_as_it_was(tmp_path: Path, theirs: dict[str, bytes], beside: bool) -> None:
    write_shards(tmp_path / "tars", 2)
    out = tmp_path / "tars" if beside else tmp_path / "out"
    write_folder(out, theirs)
    before = contents(out)
    with pytest.raises(ShardError, match="name another folder with --to"):
        run(tmp_path / "tars", out)
    assert contents(out) == before
    run(tmp_path / "tars", tmp_path / "elsewhere")


def test_links_and_temporary_files_of_others_are_not_followed_or_removed(tmp_path: Path) -> None:
    write_shards(tmp_path / "tars", 1)
    write_folder(tmp_path / "outside", {"0123456789abcdef0123456789abcdef.json": b"mine"})
    (tmp_path / "tars" / "_build").symlink_to(tmp_path / "outside")
    with pytest.raises(ShardError, match="_build: not a folder of an earlier run"):
        run(tmp_path / "tars")
    (tmp_path / "tars" / "_build").unlink()
    write_folder(tmp_path / "tars", {".partial-notes": b"mine"})
    run(tmp_path / "tars")
    assert (tmp_path / "tars" / ".partial-notes").exists()
    assert len(contents(tmp_path / "outside")) == 1


def test_an_index_that_another_program_wrote_afterwards_is_not_overwritten(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    run(tmp_path)
    (tmp_path / "shard-000001.tar.idx").write_bytes(b"\x07\0\0\0 their offsets")
    with pytest.raises(ShardError, match=r"shard-000001\.tar\.idx: an index that another program wrote \(1 of them"):
        run(tmp_path)
    (tmp_path / "shard-000001.tar.idx").unlink()
    assert run(tmp_path).read == 1


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_an_index_that_was_cut_short_is_made_again(tmp_path: Path, left: int) -> None:
    write_shards(tmp_path, 2)
    run(tmp_path)
    path = tmp_path / "shard-000001.tar.idx"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert run(tmp_path).read == 1
    assert path.read_bytes() == whole
    assert verify(str(tmp_path), quiet=True).problems == ()


def test_a_slip_in_the_rules_leaves_a_sound_set_as_it_was(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ShardError, match="no sample can be used"):
        run(tmp_path, rules=Rules("png"))
    assert contents(tmp_path) == before
    (tmp_path / "z.tar").write_bytes(b"no tar" * 999)
    with pytest.raises(ShardError, match="2 of 3 tars are indexed"):
        run(tmp_path, rules=Rules(labels=False))
    assert {problem.name.partition("/")[0] for problem in verify(str(tmp_path), quiet=True).problems} == {"_build"}
    (tmp_path / "z.tar").unlink()
    assert run(tmp_path).read == 0
    assert contents(tmp_path) == before


def test_an_index_that_changed_without_its_length_after_a_stopped_run_is_made_again(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    run(tmp_path)
    path = tmp_path / "shard-000001.tar.idx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # as of other rules
    write_folder(tmp_path, {"_build/index.json": b'{"index_format": 1}'})
    assert run(tmp_path).read == 1
    assert path.read_bytes() == good


def test_tars_and_folders_that_are_links(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "real" / "train", 2)
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))  # not when the links are made
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").symlink_to(paths[0])
    (tmp_path / "set" / "train").symlink_to(tmp_path / "real" / "train")
    for url in (tmp_path / "set", tmp_path / "set" / "**/*.tar"):
        assert [tar.name for tar in list_tars([str(url)]).tars] == ["a.tar", "train/shard-000000.tar", "train/shard-000001.tar"]
    assert [tar.name for tar in list_tars([str(tmp_path / "set" / "*/*0.tar")]).tars] == ["train/shard-000000.tar"]
    run(tmp_path / "set")
    assert ours(tmp_path / "set") == theirs([paths[0], *paths])
    assert run(tmp_path / "set").read == 0
    assert verify(str(tmp_path / "set"), quiet=True).problems == ()
    (tmp_path / "set" / "lost.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"lost\.tar: a link that leads nowhere"):
        run(tmp_path / "set")
    (tmp_path / "set" / "lost.tar").unlink()
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    with pytest.raises(SourceError, match="round: can't be listed: this link leads back to a folder that holds it"):
        run(tmp_path / "set")
    assert len(list_tars([str(tmp_path / "set" / "*.tar")]).tars) == 1


def test_samples_that_are_links_to_others_are_counted_and_listed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", {"0.jpg": picture(0), "0.cls": b"5", "3.jpg": picture(3), "3.cls": b"1", "4.cls": b"2"})
    for name in ("1.jpg", "1.cls", "4.jpg"):
        os.link(folder / f"0{Path(name).suffix}", folder / name)
    (folder / "2.jpg").symlink_to("0.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.jpg", "0.cls", "1.jpg", "1.cls", "2.jpg", "3.jpg", "1.txt.cls", "3.cls", "4.cls", "4.jpg"):
            if (folder / name).exists():
                tar.add(folder / name, name)
    result = run(tmp_path / "x.tar", tmp_path / "out")
    assert ours(tmp_path / "out") == theirs([tmp_path / "x.tar"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["4", "1", "2"]
    assert all("is a link to another member" in row["reason"] for row in rows)
    assert result.manifest.rejected == 3
    with pytest.raises(ShardError, match="is a link to another member"):
        run(tmp_path / "x.tar", tmp_path / "strict", strict=True)


def test_their_own_folder_by_any_name_is_beside_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "tars", 2)
    monkeypatch.chdir(tmp_path)
    first = run("tars").manifest
    (tmp_path / "link").symlink_to("tars")
    for name in ("tars", "./tars/", str(tmp_path / "tars"), f"file://{tmp_path}/tars", "link"):
        result = run("tars", name)
        assert (result.read, result.manifest.encode()) == (0, first.encode())
    assert run("tars", "out").manifest.url == str(tmp_path / "out")


def test_a_tar_in_the_folder_of_unfinished_work_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path / "tars", 1)
    write_shards(tmp_path / "tars" / "_build", 1)
    with pytest.raises(SourceError, match=r"_build/shard-000000\.tar: lies in _build"):
        run(tmp_path / "tars", tmp_path / "out")
    run(tmp_path / "tars" / "*.tar", tmp_path / "out")


def test_long_braces_strange_numbers_and_unknown_users_are_no_crash(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 40)
    braces = "{" + ",".join(path.name[6:12] for path in paths) + "}"
    assert len(list_tars([f"{tmp_path}/shard-{braces}.tar"]).tars) == 40
    with pytest.raises(SourceError, match="names more than"):
        list_tars([f"{tmp_path}/shard-{{0..{'9' * 5000}}}.tar"])
    with pytest.raises(SourceError, match="no such user"):
        list_tars(["~nosuchuser/x"])
    with pytest.raises(StoreError, match="nosuchuser"):
        Store("~nosuchuser/x")


@pytest.mark.parametrize("times", [True, False])
def test_a_tar_that_is_replaced_on_a_web_server_is_noticed(tmp_path: Path, times: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain_tar(tmp_path / "x.tar", {"0.jpg": picture(0), "0.cls": b"5"})
    (tmp_path / "web").mkdir()
    target = path.replace(tmp_path / "web" / "x.tar")
    os.utime(target, (1_000_000_000, 1_000_000_000))
    with served(tmp_path / "web", times) as url:
        text = as_text(run(f"{url}/", tmp_path / "out"))
        assert any("no time and no ETag of 1 tar:" in line for line in text) != times
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "TemporaryFile", None)  # no tar is copied to this disk
            assert verify(str(tmp_path / "out"), quiet=True).problems == ()
        with counted() as read:
            run(f"{url}/", tmp_path / "out")
        assert bool(read) != times
        target.write_bytes(tar_of({"0.jpg": picture(1), "0.cls": b"6"}))
        os.utime(target, (1_100_000_000, 1_100_000_000))
        run(f"{url}/", tmp_path / "out")
        assert [data for _, data, _ in ours(tmp_path / "out")] == [picture(1)]
