"""Every fault of a tar is named, where most readers end without an error; files that belong to no sample are listed."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from shards.adopt.index_tars import as_text
from shards.dataset import index
from shards.dataset.index import Rules
from shards.errors import ShardCorrupt, ShardError, SourceError
from shards.tar.listing import list_tars
from shards.tar.samples import walk
from tests.shards.adopt.foreign import ours, picture, run
from tests.shards.trees import run as build
from tests.shards.trees import tar_of, write_folder

MEMBERS = {f"{number}.{kind}": picture(number, 700) if kind == "jpg" else b"1" for number in range(3) for kind in ("cls", "jpg")}
GOOD = tar_of(MEMBERS)
with tarfile.open(fileobj=io.BytesIO(GOOD)) as _archive:
    HEADER, LAST = (_archive.getmember(name).offset for name in ("1.jpg", "2.jpg"))
END = LAST + 512 + 1024
BEHIND = rf"at byte {HEADER}, behind 1\.cls"


def changed(start: int, patch: bytes) -> bytes:
    return GOOD[:start] + patch + GOOD[start + len(patch) :]


def flipped(place: int) -> bytes:
    return changed(place, bytes([GOOD[place] ^ 1]))


def long_named(form: int) -> bytes:
    """A tar whose first member has a name of 200 bytes that was overwritten by zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("x" * 196 + ".jpg"))
    data = bytearray(buffer.getvalue())
    data[512:1024] = bytes(512)
    return bytes(data)


FAULTS = {
    "a flipped name": (flipped(HEADER + 1), rf"a damaged header {BEHIND}: readers take it for the end and lose"),
    "a flipped size": (flipped(HEADER + 130), rf"a damaged header {BEHIND}"),
    "a flipped checksum": (flipped(HEADER + 150), rf"a damaged header {BEHIND}"),
    "bytes put in": (GOOD[:HEADER] + b"abc" + GOOD[HEADER:], rf"a damaged header {BEHIND}"),
    "a lost block": (GOOD[: HEADER + 512] + GOOD[HEADER + 1024 :], r"a damaged header at byte \d+, behind 1\.jpg"),
    "a flipped first header": (flipped(1), "not a tar, or one whose first header is damaged"),
    "a cut header": (GOOD[: HEADER + 300], rf"cut short inside a header {BEHIND}: {HEADER + 300:,} bytes are there"),
    "a cut member": (GOOD[: HEADER + 600], r"cut short inside 1\.jpg"),
    "cut padding": (GOOD[: END - 1], rf"cut short behind 2\.jpg: {END - 1:,} bytes are there, {END:,} are needed"),
    "a cut end": (GOOD[: END + 100], rf"cut short inside the blocks of zeros that close it at byte {END}"),
    "no end": (GOOD[:END], rf"ends at byte {END}, behind 2\.jpg, without the blocks of zeros .*index --open-ended accepts it"),
    "a zeroed header": (changed(HEADER, bytes(512)), rf"a block of zeros {BEHIND}, where a header should be"),
    "a zeroed first header": (changed(0, bytes(512)), "a block of zeros at byte 0, where a header should be"),
    "zeroed blocks": (
        changed(HEADER, bytes(1024)),
        rf"bytes of no archive behind the blocks of zeros {BEHIND}",
    ),
    "a zeroed long name": (long_named(tarfile.GNU_FORMAT), "the long name of the member at byte 0 is damaged: '' is left"),
    "zeroed pax records": (long_named(tarfile.PAX_FORMAT), "the long name of the member at byte 0 is damaged: 'xxx"),
    "a zeroed rest": (
        GOOD[:HEADER] + bytes(5 << 20),
        rf"{5 << 20:,} bytes of zeros {BEHIND}, more than an archive ends",
    ),
    "a second archive": (GOOD + tar_of({"x.jpg": b"1"}), rf"a second archive begins at byte {len(GOOD)}, .* tar --concatenate"),
    "bytes behind the end": (GOOD + b"more" * 200, "800 bytes of no archive behind the blocks of zeros"),
    "a field twice": (tar_of({**MEMBERS, "2.JPG": b"1"}), r"2\.JPG: the sample 2 has the field jpg twice"),
    "an empty file": (b"", "an empty file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
    "a git-annex pointer": (b"/annex/objects/SHA256E-s9--1.tar\n", "a git-annex pointer.*git annex get"),
    "a zip archive": (b"PK\x03\x04" + b"x" * 600, "a zip archive"),
    "a web page": (b"\n<!DOCTYPE html><html>" + b" " * 600, "a web page"),
    "an answer in XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_a_tar_is_named(kind: str) -> None:
    data, message = FAULTS[kind]
    with pytest.raises(ShardCorrupt, match=rf"(?s)^x\.tar: .*{message}") as caught:
        index.make(io.BytesIO(data), "x.tar")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["a flipped name", "a lost block", "a zeroed header", "zeroed blocks", "a zeroed rest", "a second archive"]
)
def test_other_readers_end_without_an_error_where_a_message_says_so(kind: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(FAULTS[kind][0])) as archive:
        assert 0 < len(archive.getnames()) <= len(MEMBERS)


@pytest.mark.parametrize("kind", ["a second archive", "a zeroed header", "bytes behind the end", "a Git LFS pointer"])
def test_a_tar_to_build_from_has_the_same_faults(tmp_path: Path, kind: str) -> None:
    data, message = FAULTS[kind]
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        build(tmp_path / "x.tar", tmp_path / "out")


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=pax", "--sparse-version=0.1"]])
def test_a_sparse_member_is_not_called_cut_short(tmp_path: Path, options: list[str]) -> None:
    with open(tmp_path / "0.jpg", "wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "--sparse", *options, "-C", str(tmp_path), "-cf", str(tmp_path / "x.tar"), "0.jpg"], check=True)
    with pytest.raises(ShardError, match=r"x\.tar: 0\.jpg is stored as a sparse file.*without --sparse .*--no-read-sparse"):
        run(tmp_path / "x.tar")


def test_a_part_of_an_archive_of_several_volumes_is_named() -> None:
    member = tarfile.TarInfo("0.jpg")
    member.type = b"M"
    with pytest.raises(ShardCorrupt, match=r"0\.jpg begins in another volume \(tar --multi-volume\)"):
        list(walk(io.BytesIO(member.tobuf() + bytes(1024)), "x.tar"))


@pytest.mark.parametrize("hidden", [["d/.q.jpg", "d/._r.jpg"], ["._r.jpg"], ["__MACOSX/d/._r.JPG", "d/.jpg"]])
def test_hidden_pictures_belong_to_no_sample_and_are_counted(tmp_path: Path, hidden: list[str]) -> None:
    (tmp_path / "x.tar").write_bytes(
        tar_of({**dict.fromkeys(hidden, b"junk"), "d/r.jpg": picture(1), "d/._r.cls": b"junk", "d/r.cls": b"2"})
    )
    result = run(tmp_path / "x.tar", strict=True)
    assert (ours(tmp_path), result.rejected) == ([("d/r", picture(1), 2)], [])
    assert any(f"hidden or of a tool, left out of the tars: {len(hidden) + 1} files (" in line for line in as_text(result))


@pytest.mark.parametrize(
    ("link", "url"),
    [("x.tar", "x.tar"), ("shard-1.tar", "shard-{0..1}.tar"), ("shard-1.tar", "."), ("more", "."), ("x.tar", "*.tar")],
)
def test_a_dead_link_is_called_by_its_name(tmp_path: Path, link: str, url: str) -> None:
    (tmp_path / "shard-0.tar").write_bytes(GOOD)
    (tmp_path / link).symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match=rf"{link}: a link that leads nowhere"):
        list_tars([f"{tmp_path}/{url}"])


def test_pictures_that_are_dead_links_or_pointers_are_called_by_their_names(tmp_path: Path) -> None:
    names = ["a Git LFS pointer", "a git-annex pointer", "a web page", "an answer in XML"]
    write_folder(tmp_path / "in", {f"{name}.jpg": FAULTS[name][0] for name in names})
    (tmp_path / "in" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ShardError, match="none of 5 pictures could be stored") as caught:
        build(tmp_path / "in", tmp_path / "out")
    for line in (r"dead\.jpg: a link that leads nowhere", *(rf"{name}\.jpg: {FAULTS[name][1]}" for name in names)):
        assert caught.match(line)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_the_same_tar_twice_is_a_warning(tmp_path: Path, digests: bool, link: bool) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(GOOD if name == "a.tar" else tar_of({"x.jpg": picture(9)}))
    assert not any("warning" in line for line in as_text(run(tmp_path, rules=Rules(digests=digests))))
    if link:
        (tmp_path / "latest.tar").symlink_to("b.tar")
    else:
        (tmp_path / "latest.tar").write_bytes((tmp_path / "b.tar").read_bytes())
        os.utime(tmp_path / "latest.tar", (1_000_000_000, 1_000_000_000))
    text = as_text(run(tmp_path, rules=Rules(digests=digests)))
    said = any("warning: the same tar twice: b.tar and latest.tar; 1 sample is there twice" in line for line in text)
    assert said == (digests or link)  # without digests, a copy of another time is another tar
