"""A listing: every picture of a source once, sorted, with the place where its bytes lie."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.local.object_store import SeaweedFS
from shards.build.sources import SOURCES, Listing, open_source
from shards.build.sources.listing import ListingBuilder
from shards.build.sources.reading import read_pictures
from shards.dataset.pixels import PictureRejected
from shards.errors import SourceError, StoreError
from shards.layout import left_out_part
from tests.shards.trees import classed, tar_of, tar_of_tars, write_folder

PICTURES = {f"c{number // 5}/{number:02d}.JPEG": bytes([number]) * (100 + number) for number in range(15)}


def read_back(listing: Listing, options: dict[str, str] | None = None) -> dict[str, bytes | PictureRejected | None]:
    return {entry.name: data for entry, data in read_pictures(listing.url, options, list(listing), 10**6)}


def write(folder: Path, pack: str) -> Path:
    if pack == "folder":
        return write_folder(folder / "pictures", PICTURES)
    (folder / "pictures.tar").write_bytes(tar_of(PICTURES) if pack == "tar" else tar_of_tars(PICTURES))
    return folder / "pictures.tar"


def test_every_file_with_a_source_is_found_and_those_that_accept_everything_are_last() -> None:
    assert [type(source).__name__ for source in SOURCES] == ["FolderSource", "TarSource"]


@pytest.mark.parametrize("pack", ["folder", "tar", "tar of tars"])
def test_every_picture_is_listed_by_name_and_read_from_its_place(tmp_path: Path, pack: str) -> None:
    listing = open_source(str(write(tmp_path, pack)))
    assert [entry.name for entry in listing] == sorted(PICTURES)
    assert read_back(listing) == PICTURES
    assert listing.classes == ("c0", "c1", "c2")
    assert all(entry.label == entry.name[:2] == listing.classes[entry.label_id] for entry in listing)
    assert listing.total_bytes == sum(map(len, PICTURES.values()))


@pytest.mark.server
@pytest.mark.parametrize("pack", ["folder", "tar", "tar of tars"])
def test_a_store_gives_the_listing_of_the_local_files(tmp_path: Path, s3: SeaweedFS, pack: str) -> None:
    local = write(tmp_path, pack)
    bucket = s3.make_bucket("sources")
    prefix = f"{bucket}/{pack.replace(' ', '-')} é[1]"
    files = s3.filesystem()
    for path in [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]:
        files.pipe_file(f"{prefix}/{path.relative_to(tmp_path)}", path.read_bytes())
    remote = open_source(f"{prefix}/{local.name}", s3.options)
    assert list(remote) == list(open_source(str(local)))
    assert remote.digest() == open_source(str(local)).digest()
    assert read_back(remote, s3.options) == PICTURES


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    for name, pictures in (("a", PICTURES), ("b", dict(reversed(PICTURES.items())))):
        (tmp_path / f"{name}.tar").write_bytes(tar_of(pictures))
    a, b = (open_source(str(tmp_path / f"{name}.tar")) for name in "ab")
    assert [entry.name for entry in a] == [entry.name for entry in b]
    assert read_back(a) == read_back(b)


def test_a_folder_of_tars_is_a_tar_of_tars_unless_pictures_lie_beside(tmp_path: Path) -> None:
    inner = {name: data for name, data in PICTURES.items() if name.startswith("c0/")}
    write_folder(tmp_path / "tars", {"c0.tar": tar_of({name[3:]: data for name, data in inner.items()}), "c1.tar": tar_of({"x.jpg": b"1"})})
    listing = open_source(str(tmp_path / "tars"))
    assert read_back(listing) == {**inner, "c1/x.jpg": b"1"}
    assert listing.classes == ("c0", "c1")
    write_folder(tmp_path / "tars", {"y.jpg": b"2"})
    listing = open_source(str(tmp_path / "tars"))
    assert [entry.name for entry in listing] == ["y.jpg"]
    assert sum(listing.other.values()) == 2


def test_what_is_no_picture_is_counted_by_kind(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.JpG": b"1", "b.txt": b"", "c.TXT": b"", "README": b"", "d.jpg.part": b""})
    listing = open_source(str(tmp_path))
    assert [entry.name for entry in listing] == ["a.JpG"]
    assert dict(listing.other) == {".txt": 2, "without extension": 1, ".part": 1}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.jpg", "b/2.jpg"], ("a", "b")),
        (["b/x/1.jpg", "a/y/2.jpg"], ("a", "b")),
        (["a/1.jpg", "a/2.jpg"], ()),
        (["a/1.jpg", "b/2.jpg", "3.jpg"], ()),
        (["1.jpg", "2.jpg"], ()),
    ],
)
def test_the_first_folder_is_the_class_where_that_makes_sense(tmp_path: Path, names: list[str], classes: tuple[str, ...]) -> None:
    write_folder(tmp_path, dict.fromkeys(names, b"1"))
    assert open_source(str(tmp_path)).classes == classes
    assert open_source(str(tmp_path), labels="none").classes == ()


def test_a_pattern_takes_labels_and_globs_take_pictures(tmp_path: Path) -> None:
    names = ["train/n2/images/1.jpg", "train/n1/images/2.jpg", "val/images/3.jpg"]
    write_folder(tmp_path, dict.fromkeys(names, b"1"))
    listing = open_source(str(tmp_path), include=["train/*"], label_pattern="^train/([^/]+)/")
    assert [(entry.name, entry.label, entry.label_id) for entry in listing] == [(names[1], "n1", 0), (names[0], "n2", 1)]
    assert listing.excluded == 1
    with pytest.raises(SourceError, match=r"finds nothing in the name val/images/3\.jpg"):
        open_source(str(tmp_path), label_pattern="^train/([^/]+)/")
    for pattern, message in (("(", "no regular expression"), ("train", "0 groups"), ("(a)(b)", "2 groups")):
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path), label_pattern=pattern)
    with pytest.raises(SourceError, match="3 pictures match no --include"):
        open_source(str(tmp_path), include=["test/*"])


def test_sources_without_pictures_say_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files at all"):
        open_source(str(tmp_path))
    write_folder(tmp_path, {"a.txt": b"", "b.txt": b""})
    with pytest.raises(SourceError, match=r"no pictures.*\.txt 2"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / "absent"))


def test_links_are_followed_and_circles_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", PICTURES)
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset" / "c0").symlink_to(tmp_path / "real" / "c0")
    (tmp_path / "subset" / "again").symlink_to(tmp_path / "real" / "c0")
    (tmp_path / "subset" / "one.jpg").symlink_to(tmp_path / "real" / "c1" / "07.JPEG")
    listing = open_source(str(tmp_path / "subset"))
    assert len(listing) == 11
    assert read_back(listing)["one.jpg"] == PICTURES["c1/07.JPEG"]
    (tmp_path / "subset" / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    assert isinstance(read_back(open_source(str(tmp_path / "subset")))["nowhere.jpg"], PictureRejected)
    (tmp_path / "subset" / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(SourceError, match=r"subset/loop\.jpg: can't be listed: Too many levels of symbolic links"):
        open_source(str(tmp_path / "subset"))
    (tmp_path / "subset" / "loop.jpg").unlink()
    (tmp_path / "subset" / "up").symlink_to(tmp_path / "subset")
    with pytest.raises(SourceError, match="subset/up: this link leads back"):
        open_source(str(tmp_path / "subset"))


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg"])
def test_members_named_outside_their_archive_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({"a.jpg": b"1", name: b"2"}))
    with pytest.raises(SourceError, match="named outside the archive"):
        open_source(str(tmp_path / "x.tar"))


def test_a_leading_dot_in_member_names_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({f"./{name}": data for name, data in PICTURES.items()}))
    assert read_back(open_source(str(tmp_path / "x.tar"))) == PICTURES


def test_long_and_foreign_names_in_tars(tmp_path: Path) -> None:
    pictures = {"снег/" + "é" * 100 + ".jpg": b"1", "x" * 250 + "/1.jpg": b"22"}
    (tmp_path / "x.tar").write_bytes(tar_of_tars(pictures))
    assert read_back(open_source(str(tmp_path / "x.tar"))) == pictures


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
def test_compressed_archives_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(tar_of(PICTURES)))
    with pytest.raises(SourceError, match=r"compressed with gzip \(unpack it with: gunzip\)"):
        open_source(str(tmp_path / f"x{suffix}"))
    (tmp_path / "outer.tar").write_bytes(tar_of({"c0.tar": gzip.compress(tar_of(PICTURES))}))
    with pytest.raises(SourceError, match=r"c0\.tar: compressed with gzip"):
        open_source(str(tmp_path / "outer.tar"))


def test_links_in_tars_are_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_of({"a.jpg": b"1"}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    listing = open_source(str(tmp_path / "x.tar"))
    assert len(listing) == 1
    assert sum(listing.other.values()) == 1
    assert "--dereference" in next(iter(listing.other))


def test_a_picture_that_is_twice_in_a_tar_is_an_error(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_of({"a.jpg": b"1"}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        member = tarfile.TarInfo("./a.jpg")
        archive.addfile(member)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(SourceError, match=r"a\.jpg is there twice"):
        open_source(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_tar_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path, nested: bool) -> None:
    data = tar_of_tars(PICTURES) if nested else tar_of(PICTURES)
    whole = len(data.rstrip(b"\0")) // 512 * 512
    for cut in range(0, whole, 2048):
        (tmp_path / "x.tar").write_bytes(data[:cut])
        with pytest.raises(SourceError, match=r"x\.tar"):
            open_source(str(tmp_path / "x.tar"))


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(os.urandom(4096))
    with pytest.raises(SourceError, match="not a tar"):
        open_source(str(tmp_path / "x.tar"))
    (tmp_path / "x.jpg").write_bytes(next(iter(classed(4).values())))
    with pytest.raises(SourceError, match=r"x\.jpg: not a tar"):
        open_source(str(tmp_path / "x.jpg"))


names = st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(names.map(lambda name: name + ".png"), st.integers(0, 2**40), min_size=1, max_size=20))
def test_columns_give_back_what_was_put_in(files: dict[str, int]) -> None:
    builder = ListingBuilder("x")
    encodable = {name: size for name, size in files.items() if name.isprintable() and not left_out_part(name)}
    for name, size in encodable.items():
        builder.add(name, size)
    if not encodable:
        return
    listing = builder.finish("x", "none", None)
    assert {entry.name: entry.length for entry in listing} == encodable
    assert [entry.name.encode() for entry in listing] == sorted(name.encode() for name in encodable)
    assert [listing[place] for place in range(len(listing))] == list(listing)


@pytest.mark.server
def test_a_source_that_is_not_in_its_store_is_named(s3: SeaweedFS) -> None:
    bucket = s3.make_bucket("absent")
    for url in (f"{bucket}/nothing", f"{bucket}/nothing.tar", "s3://no-such-bucket/x"):
        with pytest.raises((SourceError, StoreError), match=f"{url}.*not found"):
            open_source(url, s3.options)


@pytest.mark.server
def test_a_store_that_fails_for_a_moment_is_asked_again(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.build.sources import reading
    from shards.store import Store

    bucket = s3.make_bucket("flaky")
    s3.filesystem().pipe_file("flaky/a.jpg", b"0123456789")
    failures = [StoreError("SlowDown"), b"0123", StoreError("reset")]
    read_range = Store.read_range

    def flaky(store: Store, name: str, start: int, end: int) -> bytes:
        if failures:
            failure = failures.pop()
            if isinstance(failure, bytes):
                return failure
            raise failure
        return read_range(store, name, start, end)

    monkeypatch.setattr(Store, "read_range", flaky)
    monkeypatch.setattr(reading, "_PAUSES", (0.01, 0.01, 0.01))
    assert read_back(open_source(bucket, s3.options), s3.options) == {"a.jpg": b"0123456789"}
    failures[:] = [b"0123"] * 4
    with pytest.raises(SourceError, match="4 bytes of 10"):
        read_back(open_source(bucket, s3.options), s3.options)
