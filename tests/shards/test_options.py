"""Options of a store that are misspelt or can't be: one line that names the option, from every command, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stream.read.storage import ResumingReader, reading_store
from shards.__main__ import main
from shards.dataset import manifest
from shards.errors import StoreOptionsError
from shards.store import Store
from shards.urls import parse_options

WRONG = [
    ("endpoint_url=127.0.0.1:9", "the endpoint '127.0.0.1:9' is no URL. Write it with its scheme, endpoint_url=http://HOST:PORT"),
    ("endpoint_url=me:hunter2@host:9?hunter2", "the endpoint 'host:9' is no URL"),
    ("endpoint=http://127.0.0.1:9", "the store has no option 'endpoint'. Did you mean endpoint_url?"),
    ("aws_access_key_id=hunter2", "the store has no option 'aws_access_key_id'. Did you mean key?"),
    ("region_name=us-east-1", 'the store has no option \'region_name\'. Did you mean client_kwargs={"region_name": "..."}?'),
    ('client_kwargs={"region": "hunter2"}', "the store has no option 'region'. Did you mean client_kwargs"),
    ('config_kwargs={"addressing_style": "path"}', "the store has no option 'addressing_style'. Did you mean config_kwargs={\"s3\": "),
    ("colour=hunter2", "the store has no option 'colour'. Check the options of the store"),
    ('client_kwargs={"region_name": "us east"}', "us east"),
    ("anon=ture", "the option anon of the store is true or false"),
    ("max_concurrency=hunter2", "the option max_concurrency of the store is a whole number"),
    ("client_kwargs=hunter2", "the option client_kwargs of the store is JSON"),
]
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "index a folder": lambda folder: ["index", "s3://bucket/t"],
    "index a tar": lambda folder: ["index", "s3://bucket/t/a.tar"],
    "index a glob": lambda folder: ["index", "s3://bucket/t/*.tar", "--to", str(folder / "out")],
    "index braces": lambda folder: ["index", "s3://bucket/t/{0..99}.tar"],
    "index a list": lambda folder: ["index", "s3://bucket/t/list.txt"],
    "verify": lambda folder: ["verify", "s3://bucket/t"],
    "inspect": lambda folder: ["inspect", "s3://bucket/t"],
    "build from it": lambda folder: ["build", "s3://bucket/t", str(folder / "out")],
    "build into it": lambda folder: ["build", str(folder), "s3://bucket/t"],
}


def one_line(arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*arguments, "--storage", "key=hunter2", "--storage", "secret=hunter2", "--storage", option]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: s3://bucket/t")
    assert text.count("\n") == 1
    assert "hunter2" not in text
    return text


@pytest.mark.parametrize(("option", "message"), WRONG)
def test_an_option_that_can_not_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str) -> None:
    assert message in one_line(["index", "s3://bucket/t", "--to", str(tmp_path / "out")], option, capsys)


@pytest.mark.parametrize("option", ["endpoint_url=127.0.0.1:9", "endpoint=http://127.0.0.1:9"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, option: str) -> None:
    one_line(COMMANDS[command](tmp_path), option, capsys)


@pytest.mark.parametrize(("option", "message"), WRONG[:4])
def test_training_names_it_at_once_instead_of_trying_again(option: str, message: str) -> None:
    options = {"key": "x", "secret": "x", **parse_options([option])}
    reader = ResumingReader(reading_store("s3://bucket/t", options, 5.0), retries=8)
    with pytest.raises(StoreOptionsError) as caught:
        manifest.load("s3://bucket/t", reader=reader)
    assert message in str(caught.value)
    assert not reader.counters.totals().get("store_retries")
    with pytest.raises(StoreOptionsError), Store("s3://bucket/t", options).writing("checkpoint") as file:
        file.write(b"x")


def test_an_endpoint_of_the_environment_without_its_scheme_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage.example.org")
    assert "the endpoint 'storage.example.org' is no URL" in one_line(["verify", "s3://bucket/t"], "anon=true", capsys)


def test_a_bucket_that_can_not_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "s3://My_Bucket!/t", "--storage", "anon=true"]) == 1
    assert capsys.readouterr().err.startswith("error: s3://My_Bucket!/t: no bucket can be called 'My_Bucket!'")
