"""The tars that a URL names, their order, and the URLs that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import SourceError
from shards.tar.listing import list_tars
from shards.tar.version import version_of

NAMES = [f"{folder}/shard-{number:03d}.tar" for folder in ("train", "val") for number in range(20)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in [*NAMES, "train/deep/er/x.tar", "train/notes.txt", "train/.partial-1.tar", "train/y.TAR", "other/[odd] {a}.tar"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    return tmp_path


def names(*urls: str) -> tuple[str, list[str]]:
    found = list_tars(urls)
    return found.url, [tar.name for tar in found.tars]


def test_folders_globs_braces_and_single_tars(tree: Path) -> None:
    train = [name.removeprefix("train/") for name in NAMES[:20]]
    assert names(f"{tree}/train/") == (f"{tree}/train", sorted(["deep/er/x.tar", *train, "y.TAR"]))
    assert names(f"{tree}/train/*.tar") == (f"{tree}/train", train)
    assert names(f"{tree}/train/shard-00?.tar") == (f"{tree}/train", train[:10])
    assert names(f"{tree}/train/shard-0[01]5.tar") == (f"{tree}/train", [train[5], train[15]])
    assert names(f"{tree}/train/**/*.tar") == (f"{tree}/train", sorted(["deep/er/x.tar", *train]))
    assert names(f"{tree}/train/shard-{{000..019}}.tar") == (f"{tree}/train", train)
    assert names(f"{tree}/train/shard-{{003..001}}.tar") == (f"{tree}/train", train[1:4])
    assert names(f"{tree}/{{val,train}}/shard-{{000..019}}.tar") == (str(tree), NAMES)
    assert names(f"{tree}/train/shard-{{000,0{{07..09}},015}}.tar") == (f"{tree}/train", [train[n] for n in (0, 7, 8, 9, 15)])
    assert names(f"{tree}/{{train,val}}/*.tar") == (str(tree), NAMES)
    assert names(f"{tree}/train/shard-004.tar") == (f"{tree}/train", ["shard-004.tar"])
    assert names(f"{tree}/other") == (f"{tree}/other", ["[odd] {a}.tar"])
    assert names(f"{tree}/other/[odd] {{a}}.tar") == (f"{tree}/other", ["[odd] {a}.tar"])
    assert names(f"{tree}/val", f"{tree}/train/shard-000.tar", f"{tree}/val/*.tar") == (str(tree), ["train/shard-000.tar", *NAMES[20:]])
    assert names(f"file://{tree}/val") == (f"file://{tree}/val", [name.removeprefix("val/") for name in NAMES[20:]])


def test_a_relative_folder_is_named_whole(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "train" / "deep")
    assert names("er") == names("../deep/er/*.tar") == (f"{tree}/train/deep/er", ["x.tar"])


def test_sizes_and_versions_follow_the_objects(tree: Path) -> None:
    before = list_tars([f"{tree}/val"]).tars
    assert [tar.size for tar in before] == [len("val/" + tar.name) for tar in before]
    path = tree / "val" / "shard-003.tar"
    other = path.with_name("new")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    after = list_tars([f"{tree}/val"]).tars
    assert [old.name for old, new in zip(before, after, strict=True) if old.version != new.version] == ["shard-003.tar"]
    assert version_of({"ETag": '"abc-2"', "size": 1, "LastModified": 5}) == "abc-2"
    assert version_of({"size": 1, "LastModified": 5}) == "1-5"


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["{tree}/train/shard-{{000..022}}.tar"], r"3 of the 23 shards named can.t be found: shard-020\.tar, shard-021\.tar, "),
        (["{tree}/train/shard-{{019..020}}.tar"], r"1 of the 2 shards named can.t be found: shard-020\.tar"),
        (["{tree}/train/shard-020.tar"], r"shard-020\.tar: nothing is there"),
        (["{tree}/nowhere"], "nothing is there"),
        (["{tree}/train/*.zip"], "no .tar is there"),
        (["{tree}/train/notes.{{txt,tar}}"], r"notes\.txt: not the name of a \.tar"),
        (["{tree}/train/shard-{{000..019.tar"], r"Write ranges as \{000000\.\.000099\}"),
        (["{tree}/train/shard-{{0..99999999}}.tar"], "names more than"),
        (["pipe:cat {tree}/train/shard-{{000..019}}.tar"], "run programs.*plain URL"),
        (["zip://x.tar::{tree}/x.zip"], "chain file systems"),
        (["s3://user:hunter2@bucket/train"], r"s3://bucket/train: credentials in the URL"),
        (["s3://bucket/a", "s3://other/b"], "no folder or bucket in common"),
        (["/a/*.tar", "/b/*.tar"], "no folder or bucket in common"),
        (["s3://*/x.tar"], "no folder or bucket in common"),
        (["s3://"], "names no folder"),
        ([""], "names no folder"),
    ],
)
def test_what_can_not_be_a_set_of_tars_is_one_clear_error(tree: Path, urls: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        list_tars([url.format(tree=tree) for url in urls])
    assert "hunter2" not in str(caught.value)


def test_a_name_that_no_manifest_can_hold_is_refused(tree: Path) -> None:
    (tree / "other" / "new\nline.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"new\\nline\.tar.*Rename"):
        list_tars([f"{tree}/other"])


@given(st.text("ab{},.*?[]/0", max_size=12))
def test_no_url_is_a_crash(text: str) -> None:
    with pytest.raises(SourceError):
        list_tars([f"/no such folder {text}"])
