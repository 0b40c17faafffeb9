"""`python -m shards`: what a person sees."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.local.object_store import SeaweedFS
from shards.__main__ import main
from shards.urls import with_literal_dollars
from tests.shards.trees import classed, contents, write_folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    write_folder(folder / "in", {**classed(), "class0/bad.jpg": b"x", "notes.txt": b""})
    assert main(["build", str(folder / "in"), str(folder / "out"), "--resize", "64", "--shard-size", "15", "--workers", "0"]) == 0
    return folder


def build(folder: Path, destination: str | Path, *more: str) -> int:
    return main(["build", str(folder / "in"), str(destination), "--workers", "0", *more])


def test_a_build_ends_with_what_was_made_what_was_not_and_what_to_do_next(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(built, tmp_path / "out", "--shard-size", "15") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "out")
    assert lines[1].startswith("  40 pictures in 3 shards, ")
    assert lines[2].startswith("  from 41 pictures, ")
    assert lines[2].endswith("classes: 4")
    assert lines[3] == "  not pictures, left out: 1 file (.txt 1)"
    assert lines[4] == f"  rejected: 1 picture that can't be stored, all listed in {tmp_path}/out/rejected.jsonl"
    assert lines[5] == "    class0/bad.jpg: not in a picture format that is known here"
    assert lines[6] == f"next: python -m shards verify {tmp_path}/out"
    assert build(built, tmp_path / "out", "--shard-size", "15") == 0
    assert "already built" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["shards", "my shards", "it's; $HOME"])
def test_every_command_ends_with_the_next_one_as_the_shell_takes_it(
    folder: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, option = tmp_path / folder, ["--storage", "auto_mkdir=true"]
    assert build(built, place, *option) == 0
    assert main(["verify", str(place)]) == 0
    (index,) = place.glob("*.idx")
    index.unlink()
    assert main(["verify", str(place)]) == 1
    assert main(["index", str(place / "*.tar"), "--to", str(tmp_path / f"{folder} indexed")]) == 0
    assert main(["verify", str(tmp_path / f"{folder} indexed/manifest.json")]) == 0
    output = capsys.readouterr()
    said = [shlex.split(line) for line in (output.out + output.err).splitlines() if line.startswith(("next: ", "then: "))]
    verify, train = ["next:", "python", "-m", "shards", "verify"], ["--data.shards", with_literal_dollars(str(place))]
    assert [line for line in said if line[:5] == verify] == [
        [*verify, str(place), "--storage", "auto_mkdir=VALUE"],
        [*verify, str(tmp_path / f"{folder} indexed")],
        [*verify, "--repair-index", str(place)],
    ]
    training = [line[line.index("--data.shards") :][:2] for line in said if "launch/pretrain.py" in line]
    assert training == [train, train, ["--data.shards", with_literal_dollars(str(tmp_path / f"{folder} indexed"))]]


def test_verify_says_sound_or_what_is_wrong(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(built / "out")]) == 0
    assert capsys.readouterr().out.startswith("sound: 3 shards, 40 samples, ")
    victim = built / "out" / "shard-000001.tar.idx"
    kept = victim.read_bytes()
    victim.unlink()
    assert main(["verify", str(built / "out")]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines() == ["shard-000001.tar.idx: missing (the shard is sound: --repair-index makes it again)"]
    assert output.err.strip().splitlines()[-2].startswith("NOT sound: 1 problem in 3 shards")
    assert main(["verify", str(built / "out"), "--repair-index"]) == 0
    assert victim.read_bytes() == kept


def test_inspect_says_what_a_data_set_is(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(built / "out"), "--json", "--samples", "2", "--shard", "1"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["samples"], table["shards"], table["rejected"]) == (40, 3, 1)
    assert table["classes"] == ["class0", "class1", "class2", "class3"]
    assert table["class_counts"] == [10, 10, 10, 10]
    assert table["settings"]["resize"] == 64
    assert table["bytes"] == sum(len(data) for name, data in contents(built / "out").items() if name.endswith(".tar"))
    first = table["first_samples"][0]
    assert first["key"] == "000000015"
    assert first["label"] == first["about"]["label"] == first["about"]["source"].split("/")[0]
    assert len(table["first_samples"]) == 2
    assert main(["inspect", str(built / "out")]) == 0
    text = capsys.readouterr().out
    assert "40 in 3 shards" in text
    assert "class0 10, class1 10, class2 10" in text
    assert first["about"]["source"] not in text
    assert main(["inspect", str(built / "out"), "--shard", "3"]) == 1
    assert "there is no shard 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "{in}", "{out}/x", "--resize", "big"], "--resize big: give a number of pixels, or none"),
        (["build", "{in}", "{out}/x", "--quality", "101"], "quality 101 is not between 1 and 100"),
        (["build", "{in}", "{out}/x", "--storage", "nonsense"], "KEY=VALUE"),
        (["build", "{in}", "{in}/x"], "lie in one another"),
        (["build", "{in}/nowhere", "{out}/x"], "there is no such file or folder"),
        (["build", "{in}", "pipe:cat"], "not opened"),
        (["verify", "{in}"], "holds no shards"),
        (["inspect", "nosuch://x"], "nosuch"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_exit_code_1(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([part.format(**{"in": built / "in", "out": tmp_path}) for part in arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.server
def test_a_store_by_options_or_environment_and_no_secret_anywhere(
    built: Path, s3: SeaweedFS, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.make_bucket("command")
    storage = [part for key, value in s3.options.items() for part in ("--storage", f"{key}={value}")]
    wrong = ["--storage", f"endpoint_url={s3.endpoint}", "--storage", f"key={s3.key}", "--storage", "secret=hunter2hunter2"]
    assert build(built, f"{bucket}/a", *wrong) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: s3://command/a/manifest.json: access refused")
    assert errors.count("\n") == 1
    assert build(built, "s3://no-such-bucket/a", *storage) == 1
    assert "s3://no-such-bucket/a/_build/plan.json: not found. Check the bucket" in capsys.readouterr().err
    assert build(built, f"{bucket}/a", *storage) == 0
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", f"{bucket}/a"]) == 0
    assert main(["inspect", f"{bucket}/a"]) == 0
    assert main(["build", f"{bucket}/a", str(built / "from-store")]) == 1
    output = capsys.readouterr()
    assert "s3://command/a: is a data set of shards already" in output.err
    files = s3.filesystem()
    everything = output.out + output.err + errors + files.cat_file("command/a/manifest.json").decode()
    for secret in (s3.secret, s3.key, "hunter2hunter2"):
        assert secret not in everything


def test_the_command_runs_as_a_module_in_a_pool_and_prints_names_that_are_no_text(built: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for data, name in zip(classed(4).values(), [b"a.jpg", b"\xff.jpg", b"new\nline.jpg", "снег.jpg".encode()], strict=True):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(data[:500] if name != b"a.jpg" else data)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "shards", "build", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"rejected: 3 pictures" in done.stdout
    for shown in (rb"    \udcff.jpg: ", rb"    new\nline.jpg: ", rb"    \u0441\u043d\u0435\u0433.jpg: "):
        assert shown in done.stdout
    assert done.stdout.count(b"\n") == 8


def test_the_simulation_is_a_program_of_its_own_and_the_old_command_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "s3://bucket/set", "--nodes", "8", "--storage", "secret=hunter2"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "the simulation is a program of its own now: python launch/simulate.py, with the same options\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "simulate" not in capsys.readouterr().out
