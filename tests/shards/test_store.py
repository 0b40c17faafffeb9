"""One folder behind a URL: whole or not at all, nothing outside it touched, no credentials in messages."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from launch.local.object_store import SeaweedFS
from shards.errors import StoreError
from shards.local_files import TEMPORARY_PREFIX
from shards.store import Store
from shards.urls import redacted

AWKWARD = ["plain.tar", "with space/é снег.idx", "odd/[x]*?#%.json", "odd/y"]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "a folder"))
    server: SeaweedFS = request.getfixturevalue("s3")
    server.make_bucket("store-tests")
    return Store(f"s3://store-tests/{tmp_path.name}", server.options)


def test_what_was_written_is_read_listed_and_deleted(store: Store) -> None:
    assert store.list() == []
    for name in AWKWARD:
        store.write(name, name.encode() * 100)
    assert store.list() == sorted((name, len(name.encode()) * 100) for name in AWKWARD)
    assert store.list("odd") == [(name, len(name.encode()) * 100) for name in AWKWARD[2:]]
    assert store.list(deep=False) == [("plain.tar", 900)]
    for name in AWKWARD:
        assert store.read(name) == name.encode() * 100
        assert store.read_range(name, 3, 7) == (name.encode() * 100)[3:7]
        assert store.size(name) == len(name.encode()) * 100
        with store.opened(name) as file:
            file.seek(5)
            assert file.read(4) == (name.encode() * 100)[5:9]
    store.delete(AWKWARD[2])
    assert store.size(AWKWARD[2]) is None
    assert [name for name, _ in store.list()] == sorted({*AWKWARD} - {AWKWARD[2]})
    store.delete("odd")
    assert [name for name, _ in store.list()] == ["plain.tar", "with space/é снег.idx"]
    store.delete("never there")


@pytest.mark.parametrize("span", [(0, 0), (5, 5), (7, 3), (900, 900)])
def test_an_empty_range_holds_nothing(store: Store, span: tuple[int, int]) -> None:
    store.write("x", b"x" * 900)
    assert store.read_range("x", *span) == b""


@pytest.mark.server
def test_an_old_listing_hides_no_object(s3: SeaweedFS) -> None:
    store = Store(s3.make_bucket("old-listing") + "/x", s3.options)
    others = fsspec.filesystem("s3", **s3.options, skip_instance_cache=True)  # its writes leave the listings of the store's own as they are

    def write_behind(name: str) -> str:
        store.write("before", b"x")
        store.fs.ls(store.root)
        others.pipe_file(f"old-listing/x/{name}", name.encode())
        with pytest.raises(FileNotFoundError):
            store.fs.cat_file(store.path(name))
        return name

    assert store.read(write_behind("a")) == b"a"
    assert store.whole(write_behind("b")) == b"b"
    assert store.head(write_behind("c"), 5) == b"c"
    with store.opened(write_behind("d")) as file:
        assert file.read() == b"d"
    write_behind("e")
    assert [name for name, _ in store.list()] == ["a", "b", "before", "c", "d", "e"]


def test_a_pattern_in_a_name_deletes_only_what_it_names(store: Store) -> None:
    for name in ("run[1]/_build/0", "run1/_build/0", "a*", "ab"):
        store.write(name, b"x")
    store.delete("run[1]/_build")
    store.delete("a*")
    assert [name for name, _ in store.list()] == ["ab", "run1/_build/0"]


def test_what_raises_while_writing_leaves_nothing(store: Store) -> None:
    def half(name: str) -> None:
        with store.writing(name) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    store.write("kept", b"old")
    for name in ("kept", "new"):
        with pytest.raises(RuntimeError, match="stop"):
            half(name)
    assert store.read("kept") == b"old"
    assert store.list() == [("kept", 3)]


def test_a_finished_file_is_placed_and_gone(store: Store, tmp_path: Path) -> None:
    if store.local:
        store.make_folder()
    source = (store.local or tmp_path) / f"{TEMPORARY_PREFIX}x"
    source.write_bytes(b"1" * 1000)
    assert store.list() == []
    store.adopt_file(source, "deep/x")
    assert not source.exists()
    assert store.list() == [("deep/x", 1000)]


def test_a_folder_is_no_object(store: Store) -> None:
    store.write("folder/x", b"1")
    assert store.size("folder") is None
    assert store.size("folder/x/y") is None
    with pytest.raises(StoreError):
        store.read("folder/absent")


def test_names_that_leave_the_folder_are_refused(store: Store) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(StoreError, match="leaves the folder"):
            store.read(name)


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "simplecache::s3://bucket/x", "nosuchscheme://x", ""])
def test_urls_that_are_not_one_place_are_refused(url: str) -> None:
    with pytest.raises(StoreError):
        Store(url)


@pytest.mark.parametrize("url", ["s3:/bucket/x", "gs:/bucket/x", "file:/x", "https:/host/x"])
def test_a_url_with_one_slash_is_refused_because_a_local_folder_would_be_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"^{url}: has one slash behind \w+\. Write \w+://"):
        Store(url)
    Store(f"{tmp_path}/./{url}").write("x", b"1")
    assert (tmp_path / url / "x").exists(), "a folder of that name can still be named"


def test_a_relative_folder_whose_name_ends_with_a_colon_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("lr1e-3:/x").write("y", b"1")
    assert (tmp_path / "lr1e-3:" / "x" / "y").exists()


def test_a_local_file_is_synced_and_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("rename"), replace(source, target))[1])
    Store(str(tmp_path)).write("x", b"1")
    assert calls == ["sync", "rename", "sync"]


def test_a_folder_that_may_not_be_written_is_named_with_advice_for_folders(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write anywhere, nobody may not
    try:
        with pytest.raises(StoreError, match="who owns the folder"):
            Store(str(tmp_path)).write("x", b"1")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host/path?token=secret", "https://host/path"),
        ("https://host?token=secret", "https://host"),
        ("s3://bucket/a b?c", "s3://bucket/a b"),
        ("/plain/path?x@y", "/plain/path?x@y"),
    ],
)
def test_urls_are_shown_without_what_is_secret_in_them(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_text_options_are_read_as_what_they_say() -> None:
    options = {"anon": "false", "use_ssl": "True", "max_concurrency": "4", "secret": "1234", "config_kwargs": '{"a": 1}'}
    expected = {"anon": False, "use_ssl": True, "max_concurrency": 4, "secret": "1234", "config_kwargs": {"a": 1}}
    assert Store("memory://x", options).options == expected
    with pytest.raises(StoreError, match="client_kwargs") as caught:
        Store("memory://x", {"client_kwargs": '{"password": "hunter2'})
    assert "hunter2" not in str(caught.value)


@pytest.mark.server
def test_what_goes_wrong_with_a_store_is_one_message_that_names_it(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.make_bucket("wrongs")
    Store(bucket, s3.options).write("x", b"1")
    wrong = "wrong" + s3.secret
    cases = [
        ({**s3.options, "secret": wrong}, bucket, "access refused.*Check the credentials"),
        ({**s3.options, "key": "unknown"}, bucket, "access refused"),
        ({**s3.options, "colour": "blue"}, bucket, "the store has no option 'colour'.*options of the store"),
        ({**s3.options, "endpoint_url": "nonsense"}, bucket, "the endpoint 'nonsense' is no URL"),
        ({"profile": "nobody", "endpoint_url": s3.endpoint}, bucket, "profile .nobody. could not be found"),
        (s3.options, "s3://no-such-bucket", "not found. Check the bucket"),
    ]
    for options, url, message in cases:
        for act in (lambda store: store.read("x"), lambda store: store.write("y", b"2")):
            with pytest.raises(StoreError, match=message) as caught:
                act(Store(url, options))
            assert "\n" not in str(caught.value)
            assert s3.secret not in str(caught.value)
    reader = Store(bucket, s3.reader_options)
    assert reader.read("x") == b"1"
    with pytest.raises(StoreError, match="access refused"):
        reader.write("y", b"2")


@pytest.mark.server
def test_the_environment_is_enough_to_find_the_store(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.make_bucket("by-environment")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one that another test made had another environment
    Store(bucket).write("x", b"1")
    assert Store(bucket, s3.reader_options).read("x") == b"1"
