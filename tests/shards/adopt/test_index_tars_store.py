"""Tars in a real S3 store: a bucket that can only be read, objects that are replaced, and requests that are counted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from launch.local.object_store import SeaweedFS
from shards.__main__ import main
from shards.check.verify import verify
from shards.dataset import manifest
from shards.dataset.index import Rules
from shards.errors import ShardError, SourceError, StoreError
from shards.tar.listing import list_tars
from tests.shards.adopt.foreign import counted, ours, run, theirs, write_shards

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("foreign"), 20, each=4)


@pytest.fixture
def bucket(s3: SeaweedFS, paths: list[Path], request: pytest.FixtureRequest) -> str:
    """A folder in a bucket with the 20 tars."""
    name = "index-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    s3.make_bucket(name)
    s3.filesystem().put([str(path) for path in paths], [f"{name}/train/{path.name}" for path in paths])
    return f"s3://{name}/train"


def test_a_bucket_that_can_only_be_read(s3: SeaweedFS, bucket: str, paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"access refused.*if that folder is read-only, name another one: --to FOLDER") as caught:
        run(bucket, options=s3.reader_options, destination_options=s3.reader_options)
    assert s3.reader_secret not in str(caught.value)
    with counted() as read:
        result = run(f"{bucket}/shard-{{000000..000019}}.tar", tmp_path / "out", options=s3.reader_options, workers=4)
    assert len(read) == 20
    assert sum(size for _, size in read) == result.manifest.total_bytes
    assert ours(tmp_path / "out", s3.reader_options) == theirs(paths)
    assert result.manifest.shards_url == bucket
    assert [record.sha256 for record in result.manifest.records] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    s3.filesystem().invalidate_cache()
    assert len(s3.filesystem().find(bucket)) == 20

    with counted() as read:
        assert run(f"{bucket}/*.tar", tmp_path / "out", options=s3.reader_options).read == 0
    assert read == []
    assert verify(str(tmp_path / "out"), s3.reader_options, quiet=True).problems == ()


def test_indexes_in_another_bucket_with_other_credentials(s3: SeaweedFS, bucket: str, paths: list[Path]) -> None:
    there = s3.make_bucket("index-elsewhere") + "/indexes"
    data = run(bucket, there, options=s3.reader_options, destination_options=s3.options).manifest
    assert (data.url, data.shards_url) == (there, bucket)
    assert ours(there, s3.reader_options) == theirs(paths)
    assert not verify(there, s3.reader_options, quiet=True).problems
    for row in json.loads(s3.filesystem().cat_file(f"{there}/manifest.json"))["shards"]:
        assert row[5] == s3.filesystem().info(f"{bucket}/{row[0]}")["ETag"].strip('"')


def test_new_replaced_and_missing_tars(s3: SeaweedFS, bucket: str, paths: list[Path], tmp_path: Path) -> None:
    files = s3.filesystem()
    first = run(f"{bucket}/shard-{{000000..000018}}.tar", options=s3.options, destination_options=s3.options).manifest
    files.put_file(str(paths[0]), f"{bucket}/shard-000020.tar", chunksize=5 << 20)
    with counted() as read:
        second = run(f"{bucket}/shard-{{000000..000020}}.tar", options=s3.options, destination_options=s3.options).manifest
    assert sorted(name for name, _ in read) == ["shard-000019.tar", "shard-000020.tar"]
    assert second.records[:19] == first.records

    files.put_file(str(paths[1]), f"{bucket}/shard-000005.tar")  # as long as the one before
    problems = verify(bucket, s3.options, quiet=True).problems
    assert {problem.name for problem in problems} == {"shard-000005.tar"}
    with counted() as read:
        run(bucket, options=s3.options, destination_options=s3.options)
    assert [name for name, _ in read] == ["shard-000005.tar"]

    files.rm_file(f"{bucket}/shard-000007.tar")
    with pytest.raises(SourceError, match=r"1 of the 20 shards named can.t be found: shard-000007\.tar"):
        run(f"{bucket}/shard-{{000000..000019}}.tar", options=s3.options, destination_options=s3.options)
    assert verify(bucket, s3.options, quiet=True).problems[0].what == "missing"


def test_a_large_tar_sent_in_parts_keeps_its_version(s3: SeaweedFS, tmp_path: Path) -> None:
    path = write_shards(tmp_path / "large", 1, each=12, size=1 << 20)[0]
    url = s3.make_bucket("index-parts") + "/x"
    s3.filesystem().put_file(str(path), f"{url}/{path.name}", chunksize=5 << 20)
    assert "-" in s3.filesystem().info(f"{url}/{path.name}")["ETag"]
    run(url, options=s3.options, destination_options=s3.options)
    assert run(url, options=s3.options, destination_options=s3.options).read == 0
    assert ours(url, s3.options) == theirs([path])

    with counted() as read:
        run(url, tmp_path / "none", options=s3.options, rules=Rules(digests=False))
    assert sum(size for _, size in read) < 0.05 * path.stat().st_size
    assert ours(tmp_path / "none", s3.options) == theirs([path])
    with counted() as read:
        assert not verify(str(tmp_path / "none"), s3.options, quiet=True).problems
    assert sum(size for _, size in read) < 0.05 * path.stat().st_size
    s3.filesystem().put_file(str(path), f"{url}/{path.name}", chunksize=6 << 20)  # the same bytes in other parts have another ETag
    assert "its version differs" in verify(str(tmp_path / "none"), s3.options, quiet=True).problems[0].what


def test_a_damaged_tar_in_a_store_is_named(s3: SeaweedFS, bucket: str, paths: list[Path], tmp_path: Path) -> None:
    for number in (3, 11):
        s3.filesystem().pipe_file(f"{bucket}/shard-{number:06d}.tar", paths[number].read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"(?s)18 of 20.*shard-000003\.tar: .*cut short.*shard-000011\.tar: .*cut short"):
        run(bucket, tmp_path / "out", options=s3.options)
    assert manifest.NAME not in {path.name for path in (tmp_path / "out").iterdir()}


def test_the_command_from_tars_to_a_sound_data_set(
    s3: SeaweedFS, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3.environment, "AWS_ACCESS_KEY_ID": s3.reader_key, "AWS_SECRET_ACCESS_KEY": s3.reader_secret}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # clients of other tests have the keys that they were made with
    out = str(tmp_path / "out")
    assert main(["index", f"{bucket}/*.tar"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: s3://")
    assert errors.count("\n") == 1
    assert "--to FOLDER" in errors
    assert main(["index", f"{bucket}/*.tar", "--to", out, "--digests", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{bucket}; manifest and indexes in {out}"
    assert lines[1].startswith("  80 samples in 20 tars, ")
    assert lines[1].endswith("; 20 tars read now, 0 known before")
    assert lines[2].startswith("  no digests of the samples in 20 tars: bytes that change")
    assert lines[3:] == [f"next: python -m shards verify {out}"]
    assert main(["verify", out]) == 0
    assert "20 shards were indexed without reading them, so nothing proves their bytes" in capsys.readouterr().out
    assert main(["index", f"{bucket}/*.tar", "--to", out]) == 0
    assert main(["verify", out]) == 0
    assert "every byte, index and label is as the manifest says" in capsys.readouterr().out
    assert main(["inspect", out, "--shard", "2", "--samples", "1"]) == 0
    text = capsys.readouterr().out
    assert f"tars      {bucket}" in text
    assert "    000008  " in text
    shutil.copytree(out, tmp_path / "moved")  # indexes may be moved: they name the tars by their URL
    assert main(["verify", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize("pattern", ["", "/**/*.tar", "/*.tar"])
def test_tars_are_sorted_by_name_in_whatever_order_a_store_lists_them(s3: SeaweedFS, pattern: str) -> None:
    bucket = s3.make_bucket("index-order")
    names = ["Z.tar", "a-b.tar", "a.b.tar", "a.tar", "a.tar/c.tar", "a/b.tar", "é.tar"]
    for name in ("a", *reversed(names)):
        s3.filesystem().pipe_file(f"{bucket}/{name}", b"x")
    found = [tar.name for tar in list_tars([bucket + pattern], s3.options).tars]
    assert found == [name for name in names if pattern != "/*.tar" or "/" not in name]
