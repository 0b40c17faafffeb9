"""A store whose certificate only its owner's authority has signed, as in many a cluster: all requests trust whom users named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stream.loader import StreamLoader
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore
from shards.errors import StoreError
from shards.store import Store
from tests.certificates import Certificate, make_certificate
from tests.faults.conftest import DataSet, assert_same, take, through
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.server


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


@pytest.fixture
def private(data_set: DataSet, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for variable in ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    with Proxy(data_set.server.endpoint, certificate=certificate) as proxy:
        yield proxy


def name_it(by: str, certificate: Certificate, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Names the authority in one of the ways that there are; returns the options that this takes."""
    if by == "options":
        return {"client_kwargs": {"verify": str(certificate.certificate)}}
    if by == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.certificate))
    else:
        (folder / "config").write_text(f"[default]\nca_bundle = {certificate.certificate}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    return {}


@pytest.mark.parametrize("cache", ["none", "cache"])
@pytest.mark.parametrize("by", ["environment", "profile", "options"])
def test_streams_trust_the_authority_that_is_named(
    private: Proxy, data_set: DataSet, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, cache: str
) -> None:
    options = {**data_set.server.options, "endpoint_url": private.endpoint, **name_it(by, certificate, tmp_path, monkeypatch)}
    where = cache if cache == "none" else str(tmp_path / cache)
    with StreamLoader(through(private, data_set, cache=where, storage_options=options, retries=0)) as loader:
        assert_same(take(loader), data_set.reference)


@pytest.mark.parametrize("by", ["environment", "profile", "options"])
def test_checkpoints_trust_it_as_well(
    private: Proxy, data_set: DataSet, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    bucket = f"private-{time.time_ns()}"
    data_set.server.make_bucket(bucket)
    options = {**data_set.server.options, "endpoint_url": private.endpoint, **name_it(by, certificate, tmp_path, monkeypatch)}
    checkpoints = CheckpointStore(Store(f"s3://{bucket}/run", options))
    checkpoints.save(Checkpoint(1, {"recipe": "features"}, {}))
    checkpoints.wait(must_succeed=True)
    assert checkpoints.steps() == [1]


def test_an_authority_that_nobody_named_is_an_error_that_says_so(private: Proxy, data_set: DataSet) -> None:
    with pytest.raises(StoreError, match=r"(?i)certificate"), StreamLoader(through(private, data_set, retries=0)) as loader:
        take(loader, 1)
