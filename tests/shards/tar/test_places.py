"""Names that hold pattern characters, lists of tars in text files, and several tars in one URL."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.__main__ import main
from shards.check.verify import verify
from shards.dataset.manifest import load, split_manifest_url
from shards.errors import ManifestMismatch, SourceError
from shards.store import Store
from shards.tar.listing import list_tars
from shards.tar.places import index_command
from tests.shards.adopt.foreign import picture, run
from tests.shards.trees import tar_of

TAR = tar_of({"0.jpg": picture(0)})
ODD = ["run[1]", "run{1,2}", "run*", "run?", "a{b", "[x]{1..2}*"]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder in which names may hold any character."""
    if request.param == "local":
        return Store(str(tmp_path / "tars"))
    server: SeaweedFS = request.getfixturevalue("s3")
    server.make_bucket("places")
    return Store(f"s3://places/{tmp_path.name}", server.options)


def names(store: Store, *urls: str) -> list[str]:
    """Names below the store of the tars that URLs below it name."""
    listing = list_tars([f"{store.url}/{url}" for url in urls], store.options)
    below = listing.url[len(store.url) + 1 :]
    return [f"{below}/{tar.name}" if below else tar.name for tar in listing.tars]


@pytest.mark.parametrize("odd", ODD)
def test_a_name_that_exists_is_taken_literally(place: Store, odd: str) -> None:
    for name in (f"{odd}/0.tar", f"{odd}/1.tar", f"{odd}/below/2.tar", "run1/3.tar", "run2/3.tar", "runx/3.tar", "a/3.tar", f"x{odd}.tar"):
        place.write(name, TAR)
    assert names(place, odd) == sorted([f"{odd}/0.tar", f"{odd}/1.tar", f"{odd}/below/2.tar"])
    assert names(place, f"{odd}/*.tar") == names(place, f"{odd}/{{0..1}}.tar") == [f"{odd}/0.tar", f"{odd}/1.tar"]
    assert names(place, f"{odd}/[1-9].tar") == names(place, f"{odd}/1.tar") == [f"{odd}/1.tar"]
    assert names(place, f"{odd}/**/*.tar") == names(place, odd)
    assert names(place, f"x{odd}.tar") == [f"x{odd}.tar"]
    assert names(place, "run[12]/*.tar" if odd != "run[1]" else "run{1,2}/*.tar") == ["run1/3.tar", "run2/3.tar"]  # no such name: a pattern


def test_a_data_set_in_such_a_folder_is_indexed_verified_and_read(place: Store) -> None:
    place.write("run[1]/a*{x}.tar", TAR)
    url = f"{place.url}/run[1]"
    assert run(f"{url}/*.tar", options=place.options, destination_options=place.options).manifest.url == url
    assert verify(url, place.options, quiet=True).problems == ()
    reader = ResumingReader(reading_store(url, place.options, 5.0), retries=0)
    assert load(url, reader=reader).total_samples == 1
    assert reader.range("a*{x}.tar", 512, 600) == TAR[512:600]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar\nb.tar\n", ["a.tar", "b.tar"]),
        ("\ufeff# the first set\r\n\r\n  b.tar  \r\na.tar\r\nb.tar", ["a.tar", "b.tar"]),
        ("{a,b}.tar\nsub", ["a.tar", "b.tar", "sub/c.tar"]),
        ("*.tar\nsub/*.tar", ["a.tar", "b.tar", "sub/c.tar"]),
        ("FOLDER/a.tar\nFOLDER/sub/c.tar", ["a.tar", "sub/c.tar"]),
        ("\n".join(f"m{number:03d}.tar" for number in range(40)), [f"m{number:03d}.tar" for number in range(40)]),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "LST"])
def test_a_list_of_tars_is_what_its_lines_name(place: Store, text: str, expected: list[str], ending: str) -> None:
    for name in expected:
        place.write(name, TAR)
    place.write(f"shards.{ending}", text.replace("FOLDER", place.url).encode())
    assert names(place, f"shards.{ending}") == expected
    place.write("more.tar", TAR)
    assert names(place, f"shards.{ending}", "more.tar") == sorted({*expected, *names(place, f"shards.{ending}"), "more.tar"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty list. Write one tar"),
        (b"# nothing\n", "an empty list"),
        (b"\xff\xfe\x00", "no text"),
        (b"pipe:curl https://x/0.tar", "run programs"),
        (b"s3://user:hunter2@bucket/0.tar", "credentials in the URL"),
        (b"gone.tar", r"gone\.tar: nothing is there"),
        (b"\n".join(b"m%d.tar" % number for number in range(20)), "20 of the 20 shards named can't be found"),
    ],
)
def test_a_list_that_can_not_be_used_is_one_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        list_tars([str(tmp_path / "list.txt")])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("{}/a.tar", "{}/a.tar"),
        ("{}/{{a,b}}.tar", "'{}/{{a,b}}.tar'"),
        ("{}/*.tar", "'{}/*.tar'"),
        ("{}/list.txt", "{}/list.txt"),
        ("{}/a.tar::{}/b.tar", "{}/a.tar {}/b.tar"),
        ("{}/{{" + ",".join(f"{number:03d}" for number in range(99)) + "}}.tar", "'{}/{{000,001,"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "inspect", "training"])
def test_tars_given_as_a_data_set_are_answered_with_the_command_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, words: str, command: str
) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(TAR)
    (tmp_path / "list.txt").write_text("a.tar\nb.tar")
    given = url.format(*[tmp_path] * 2)
    if command == "training":
        reader = ResumingReader(reading_store(split_manifest_url(given)[0], {}, 5.0)) if "::" not in given else None
        with pytest.raises(ManifestMismatch) as caught:
            load(given, reader=reader)
        assert reader is None or not reader.counters.totals().get("store_retries")
        text = f"error: {caught.value}\n"
    else:
        assert main([command, given]) == 1
        text = capsys.readouterr().err
    assert text.startswith(f"error: {given}: names tars, not a data set")
    assert f": python -m shards index {words.format(*[tmp_path] * 2)}" in text
    assert text.count("\n") == 1
    if "000" not in url:
        assert main(shlex.split(index_command(given))[3:]) == 0
        with pytest.raises(ManifestMismatch, match=f"their folder is a data set already. Give the folder: {tmp_path}$"):
            load(f"{tmp_path}/a.tar")


def test_tars_in_a_store_that_can_not_be_asked_are_answered_so_too(place: Store) -> None:
    for name in ("a.tar", "b{1}.tar"):
        with pytest.raises(ManifestMismatch, match=rf"python -m shards index '?{place.url}/{name[0]}"):
            load(f"{place.url}/{name}", place.options)
    with pytest.raises(SourceError, match=r"give each tar as a word of its own: python -m shards index s3://b/a\.tar s3://b/b\.tar"):
        list_tars(["s3://b/a.tar::s3://b/b.tar"])


def test_chains_of_file_systems_are_refused() -> None:
    for url in ("zip://x.tar::s3://b/x.zip", "http://h/a::b"):
        with pytest.raises(SourceError, match="chain file systems"):
            list_tars([url])
    assert index_command("s3://b/m?.tar") == "python -m shards index 's3://b/m?.tar'"
    assert "hunter2" not in index_command("s3://me:hunter2@b/m.tar") + index_command("https://h/m.tar?hunter2")
    assert index_command("https://h/{0..9}.tar") == "python -m shards index 'https://h/{0..9}.tar' --to FOLDER"
    assert index_command("pipe:cat x.tar") == index_command("s3://bucket/set") == ""
