"""Tars behind web servers of many manners: read, or refused with the reason when they are indexed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stream.read.storage import ResumingReader, ShardUnavailable, reading_store
from shards.__main__ import main
from shards.build.sources import open_source
from shards.check.verify import verify
from shards.dataset.manifest import load, split_manifest_url
from shards.errors import ManifestMismatch, ShardError, SourceError, StoreError
from shards.store import Store
from tests.datasets import photographs
from tests.shards.adopt.foreign import picture, run, served
from tests.shards.trees import contents, tar_of
from tests.shards.web_servers import SIGNATURE, Manners, serving

TAR = tar_of({f"{number}.jpg": picture(number) for number in range(2)})
LARGE = tar_of({f"{number}.jpg": picture(number) + bytes(2_500_000) for number in range(2)})
"""Larger than one request of the program."""


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A folder that is served, with one tar."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "0.tar").write_bytes(TAR)
    return tmp_path / "web"


@pytest.mark.parametrize(
    "manners",
    [
        *(Manners(head="chunked"), Manners(head=403), Manners(head=405), Manners(total=False), Manners(length=False), Manners(page=True)),
        Manners(most=3000),
    ],
    ids=str,
)
def test_a_server_that_answers_ranges_is_read(web: Path, tmp_path: Path, manners: Manners) -> None:
    with serving(web, manners) as url:
        assert run(f"{url}/0.tar", tmp_path / "out").manifest.total_samples == 2
        assert verify(str(tmp_path / "out"), quiet=True).problems == ()
        reader = ResumingReader(reading_store(url, {}, 5.0), retries=0)
        assert reader.range("0.tar", 700, 900) == TAR[700:900]
        assert run(f"{url}/{{0..0}}.tar", tmp_path / "braces").manifest.total_bytes == len(TAR)


@pytest.mark.parametrize("data", [TAR, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("length", [True, False])
def test_a_server_without_ranges_is_refused_when_tars_are_indexed(web: Path, tmp_path: Path, data: bytes, length: bool) -> None:
    (web / "0.tar").write_bytes(data)
    with serving(web, Manners(ranges=False, length=length)) as url:
        with pytest.raises(SourceError, match=r"0\.tar: the web server sends whole files where a range of bytes is asked for.*nginx"):
            run(f"{url}/0.tar", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(StoreError, match="sends whole files"):
            Store(url).read_range("0.tar", 512, 600)
        reader = ResumingReader(reading_store(url, {}, 5.0), retries=8)
        with pytest.raises(ShardUnavailable, match=r"0\.tar: the web server sends whole files.*copy them to a disk or a bucket"):
            reader.range("0.tar", 0, 600)

        (web / "manifest.json").write_bytes(b"whole objects need no ranges")
        assert reader.whole("manifest.json") == Store(url).whole("manifest.json") == b"whole objects need no ranges"


@pytest.mark.parametrize(
    ("manners", "name", "message"),
    [
        (Manners(page=True), "1.tar", r"1\.tar: the web server answers with a page \(text/html\), not with a tar. Does it want a login\?"),
        (Manners(total=False, length=False), "0.tar", r"0\.tar: the web server tells no length"),
        (Manners(encoding="gzip"), "0.tar", r"0\.tar: the web server compresses what it sends \(gzip\)"),
        (Manners(off=3), "0.tar", r"0\.tar: .*the web server answered the range bytes 3-.* to bytes 0-"),
        (Manners(signed=True), "0.tar", r"0\.tar: access refused to look it up \(PermissionError: 403 Forbidden\).*wants a login"),
        (Manners(), "1.tar", r"1\.tar: nothing is there"),
    ],
    ids=str,
)
def test_what_a_server_does_wrong_is_said(web: Path, tmp_path: Path, manners: Manners, name: str, message: str) -> None:
    with serving(web, manners) as url, pytest.raises(ShardError, match=message):
        run(f"{url}/{name}", tmp_path / "out")


@pytest.mark.parametrize("words", ["index URL/0.tar", "index URL/{0..0}.tar", "build TAR URL/new --workers 0"])
def test_nothing_is_written_to_a_web_server(web: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    with serving(web, Manners()) as url:
        (web / "0.tar").write_bytes(tar_of({"0.jpg": photographs(1)[0]}))
        assert main([word.replace("URL", url).replace("TAR", str(web / "0.tar")) for word in words.split()]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"error: {url}/")
    assert "can only be read. Choose a folder or a bucket" in text
    assert text.count("\n") == 1


def test_the_command_for_tars_behind_a_web_server_puts_the_indexes_elsewhere(web: Path) -> None:
    with served(web) as url, pytest.raises(ManifestMismatch, match=f"python -m shards index {url} --to FOLDER "):
        load(url)
    (web / "0.tar").write_bytes(tar_of({"0.jpg": b"1", "0.cls": b"1"}))
    with served(web) as url, pytest.raises(SourceError, match=rf"python -m shards index {url}/0\.tar --to FOLDER; or"):
        open_source(f"{url}/0.tar")


@pytest.mark.parametrize("name", ["0.tar", "{0..0}.tar", "*.tar", ""])
@pytest.mark.parametrize("command", ["index", "verify", "inspect", "training"])
def test_a_signed_url_is_refused_with_what_to_do_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    url = f"http://127.0.0.1:9/set/{name}?{SIGNATURE}"  # nothing is asked of the server
    if command == "training":
        with pytest.raises(StoreError) as caught:
            split_manifest_url(url)
        text = f"error: {caught.value}\n"
    else:
        assert main([command, url, *(["--to", str(tmp_path / "out")] if command == "index" else [])]) == 1
        text = capsys.readouterr().err
    assert text.startswith(f"error: http://127.0.0.1:9/set/{name}: URLs with a query (?...) are not read.")
    assert "s3://" in text
    assert text.count("\n") == 1
    assert SIGNATURE not in text
    assert not (tmp_path / "out").exists()


def test_the_signed_address_that_a_server_sends_on_to_is_never_shown(web: Path, tmp_path: Path) -> None:
    with serving(web, Manners(moved=True)) as url:
        reader = ResumingReader(reading_store(url, {}, 5.0), retries=0)
        for act in (lambda: run(f"{url}/0.tar", tmp_path / "out"), lambda: reader.range("0.tar", 0, 9), lambda: reader.whole("0.tar")):
            with pytest.raises(ShardError, match="500") as caught:
                act()
            assert SIGNATURE not in str(caught.value)


def test_a_build_reads_a_signed_url_once_and_keeps_no_signature(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (web / "0.tar").write_bytes(tar_of({f"{number}.jpg": data for number, data in enumerate(photographs(2))}))
    with serving(web, Manners(head=403, signed=True)) as url:
        assert main(["build", f"{url}/0.tar?{SIGNATURE}", str(tmp_path / "out"), "--workers", "0", "--resize", "none"]) == 0
    output = capsys.readouterr()
    held = b"".join(contents(tmp_path / "out").values()).decode("latin-1")
    assert SIGNATURE not in output.out + output.err + held
