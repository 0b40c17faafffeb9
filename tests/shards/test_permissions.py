"""Keys of a real S3 store that may do some things and not others: what each command needs, and what it says of the missing permission."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from launch.local.object_store import SeaweedFS
from pipeline.stream.read.storage import ResumingReader, ShardUnavailable, reading_store
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore, SaveOutcome
from shards.__main__ import main
from shards.dataset import manifest
from shards.store import Store
from tests.datasets import photographs
from tests.shards.shapes.label_pictures import png, square
from tests.shards.trees import tar_of, write_folder

pytestmark = pytest.mark.server
PERMISSIONS = {"read": "s3:GetObject", "list": "s3:ListBucket", "write": "s3:PutObject", "delete": "s3:DeleteObject"}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars, a data set of them, pictures and a label picture."""
    folder = tmp_path_factory.mktemp("permissions")
    pictures = {f"{number}.jpg": data for number, data in enumerate(photographs(4, 40, 40))}
    write_folder(folder / "set", {"0.tar": tar_of(pictures), "1.tar": tar_of(pictures)})
    write_folder(folder / "tars", {"0.tar": tar_of(pictures), "1.tar": tar_of(pictures)})
    write_folder(folder / "pictures", pictures)
    write_folder(folder / "labels", {"a.png": png(square())})
    assert main(["index", str(folder / "set")]) == 0
    return folder


class Bucket:
    """A bucket with those files, in which a key has the permissions that it is given and no others."""

    def __init__(self, server: SeaweedFS, local: Path) -> None:
        self.url = server.make_bucket("permissions")
        self._name, self._files = "permissions", server.filesystem()
        for path in local.rglob("*"):
            if path.is_file():
                self._files.put_file(str(path), f"{self._name}/{path.relative_to(local)}")
        self.begun = self.names()

    def may(self, words: str) -> None:
        """Gives the key some permissions and takes the others; the bucket is as it was at first."""
        for name in self.names() - self.begun:
            self._files.rm_file(f"{self._name}/{name}")
        granted = {action for word, action in PERMISSIONS.items() if word in words.split()}
        here = [f"arn:aws:s3:::{self._name}", f"arn:aws:s3:::{self._name}/*"]
        rules = [("Allow", granted), ("Deny", set(PERMISSIONS.values()) - granted)]
        statements = [{"Sid": sid, "Effect": sid, "Principal": "*", "Action": sorted(do), "Resource": here} for sid, do in rules if do]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self._files.call_s3("put_bucket_policy", Bucket=self._name, Policy=policy)

    def names(self) -> set[str]:
        """Names of all objects; the key may do what its server allows it from here on."""
        with suppress(FileNotFoundError):
            self._files.call_s3("delete_bucket_policy", Bucket=self._name)
        self._files.invalidate_cache()
        return {name.partition("/")[2] for name in self._files.find(self._name)}


@pytest.fixture(scope="module")
def shared(s3: SeaweedFS, local: Path) -> Bucket:
    return Bucket(s3, local)


@pytest.fixture
def bucket(shared: Bucket, s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket, and the key in the environment."""
    for name, value in {**s3.environment, "AWS_ACCESS_KEY_ID": s3.reader_key, "AWS_SECRET_ACCESS_KEY": s3.reader_secret}.items():
        monkeypatch.setenv(name, value)
    Store(shared.url).fs.clear_instance_cache()  # clients have the keys that they were made with
    return shared


NEEDS = {
    # command: (its words, permissions that it needs)
    "index named tars": ("index URL/tars/{0..1}.tar --to OUT", "read"),
    "index a pattern": ("index URL/tars/*.tar --to OUT", "read list"),
    "index beside the tars": ("index URL/tars", "read list write delete"),
    "index into a store": ("index LOCAL/tars --to URL/new", "read list write delete"),
    "build from a tar": ("build URL/tars/0.tar OUT --workers 0 --resize none", "read"),
    "build from a folder": ("build URL/pictures OUT --workers 0 --resize none", "read list"),
    "build into a store": ("build LOCAL/pictures URL/new --workers 0 --resize none", "read list write delete"),
    "verify": ("verify URL/set", "read list"),
    "inspect": ("inspect URL/set", "read"),
    "shapes of a folder": ("shapes URL/labels OUT", "read list"),
    "shapes into a store": ("shapes LOCAL/labels URL/new/shapes.safetensors", "read list write"),
}


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_needs_these_permissions_and_no_more(
    bucket: Bucket, s3: SeaweedFS, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words, needed = NEEDS[command]

    def outcome(out: Path) -> tuple[int, str]:
        capsys.readouterr()
        code = main([word.replace("URL", bucket.url).replace("LOCAL", str(local)).replace("OUT", str(out)) for word in words.split()])
        return code, capsys.readouterr().err

    for missing in needed.split():
        bucket.may(needed.replace(missing, ""))
        code, text = outcome(tmp_path / missing)
        assert code == 1
        assert f"{bucket.url}/" in text
        assert PERMISSIONS[missing] in text
        assert "access refused to " in text
        assert s3.reader_secret not in text
        assert bucket.names() == bucket.begun  # refused before anything was written
    bucket.may(needed)
    assert outcome(tmp_path / "out") == (0, "")


def test_training_reads_and_asks_for_nothing_else(bucket: Bucket) -> None:
    url = f"{bucket.url}/set"
    bucket.may("read")
    reader = ResumingReader(reading_store(url, {}, 5.0), retries=0)
    assert manifest.load(url, reader=reader).total_samples == 8
    assert len(reader.range("0.tar", 512, 600)) == 88
    bucket.may("list write delete")
    refused = ResumingReader(reading_store(url, {}, 5.0), retries=8)
    with pytest.raises(ShardUnavailable, match=r"set/0\.tar: access refused to read it \(.*\)\. The key needs s3:GetObject\. Check"):
        refused.range("0.tar", 512, 600)
    assert not refused.counters.totals().get("store_retries")


def saved(url: str, run: Path) -> list[SaveOutcome]:
    """Claims a store of checkpoints and saves three."""
    outcomes: list[SaveOutcome] = []
    store = CheckpointStore(Store(url), keep_last=1, report=outcomes.append)
    store.claim(run)
    for step in (1, 2, 3):
        store.save(Checkpoint(step, {}, {"model": {"weight": torch.arange(3.0)}}))
        store.wait()
    return outcomes


def test_checkpoints_need_all_four_and_stay_where_they_may_not_be_deleted(bucket: Bucket, tmp_path: Path) -> None:
    bucket.may("read list write delete")
    assert [(outcome.error, outcome.warning) for outcome in saved(f"{bucket.url}/a", tmp_path / "a")] == [(None, None)] * 3
    bucket.may("read list write")
    kept = saved(f"{bucket.url}/b", tmp_path / "b")
    assert [outcome.error for outcome in kept] == [None] * 3
    assert kept[0].warning is None
    assert "access refused to delete it" in str(kept[2].warning)
    assert "s3:DeleteObject" in str(kept[2].warning)
