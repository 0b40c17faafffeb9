"""A resume notices a change of any byte of the newest checkpoint, and takes the one before."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.config import parse
from pipeline.training.checkpoint.store import COMMIT, Checkpoint, CheckpointStore, folder_name, verify, write
from pipeline.training.resume import find_checkpoint
from shards.store import Store

STEPS = (10, 20, 30)
FILES = [COMMIT, "player.safetensors", "player.optimiser.safetensors"]


class Alone:
    """The only rank."""

    is_first = True
    size = 1

    def on_first(self, action: Callable[[], Any]) -> Any:
        return action()

    def broadcast(self, value: Any) -> Any:
        return value

    def broadcast_tensors(self, tensors: Any) -> Any:
        return tensors


def checkpoint(step: int) -> Checkpoint:
    tensors = {"conv.weight": torch.full((8, 3, 5, 5), float(step)), "steps": torch.tensor(step)}
    state = {"conv.weight/exp_avg": torch.full((8, 3, 5, 5), step / 3)}
    return Checkpoint(step, {"recipe": "features", "decoder": "a decoder"}, {"player": tensors, "player.optimiser": state})


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for step in STEPS:
        write(Store(str(folder)), checkpoint(step))
    return folder


class Resumed:
    """A copy of the originals that is damaged and resumed again and again."""

    def __init__(self, originals: Path, folder: Path) -> None:
        self.originals, self.checkpoints = originals, folder / "run" / "checkpoints"
        self.config = parse(recipes.SETTINGS, ["--data.shards", "none", "--run", str(folder / "run")])
        shutil.copytree(originals, self.checkpoints)

    def path(self, name: str, step: int = STEPS[-1]) -> Path:
        return self.checkpoints / folder_name(step) / name

    def restore(self) -> None:
        for step in STEPS:
            for name in FILES:
                target = self.path(name, step)
                if not target.exists() or target.read_bytes() != self._original(name, step):
                    target.write_bytes(self._original(name, step))

    def whole(self, name: str, step: int = STEPS[-1]) -> bytes:
        return self._original(name, step)

    def step(self) -> int:
        """The step that a run resumes from with the files as they are now; its tensors are those that were saved."""
        found = find_checkpoint(self.config, CheckpointStore(Store(str(self.checkpoints))), cast(Any, Alone()), "a decoder")
        assert found is not None
        for file, tensors in checkpoint(found.step).tensors.items():
            for name, tensor in tensors.items():
                assert found.tensors[file][name].equal(tensor)
        return found.step

    def _original(self, name: str, step: int) -> bytes:
        return (self.originals / folder_name(step) / name).read_bytes()


@pytest.fixture
def resumed(originals: Path, tmp_path: Path) -> Resumed:
    return Resumed(originals, tmp_path)


def header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_sound_ones_are_resumed_from_the_newest(resumed: Resumed) -> None:
    assert resumed.step() == 30


@pytest.mark.parametrize("name", FILES)
def test_every_byte_of_the_commit_file_and_of_every_header(resumed: Resumed, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = resumed.whole(name)
    for place in range(len(whole) if name == COMMIT else header_end(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        resumed.path(name).write_bytes(damaged)
        assert resumed.step() == 20, place
        assert f"{folder_name(30)}/{name}: damaged" in capsys.readouterr().err


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), place=st.integers(0, 1 << 20), bits=st.integers(1, 255), step=st.sampled_from(STEPS[1:]))
def test_any_byte_of_any_file(resumed: Resumed, name: str, place: int, bits: int, step: int) -> None:
    resumed.restore()
    damaged = bytearray(resumed.whole(name, step))
    damaged[place % len(damaged)] ^= bits
    resumed.path(name, step).write_bytes(damaged)
    assert resumed.step() == (20 if step == 30 else 30)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), length=st.integers(0, 1 << 20), more=st.binary(min_size=1, max_size=50))
@example(name=COMMIT, length=0, more=b"\n")
@example(name=COMMIT, length=0, more=b" ")
@example(name="player.safetensors", length=0, more=b"\0")
def test_cut_or_extended(resumed: Resumed, name: str, length: int, more: bytes) -> None:
    resumed.restore()
    whole = resumed.whole(name)
    resumed.path(name).write_bytes(whole[: length % len(whole)])
    assert resumed.step() == 20
    resumed.path(name).write_bytes(whole + more)
    assert resumed.step() == 20


@pytest.mark.parametrize("name", FILES[1:])
def test_missing(resumed: Resumed, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    resumed.path(name).unlink()
    assert resumed.step() == 20
    assert f"{name}: is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_step(resumed: Resumed, name: str) -> None:
    one, other = resumed.path(name, 30), resumed.path(name, 20)
    one.write_bytes(resumed.whole(name, 20))
    assert resumed.step() == 20
    other.write_bytes(resumed.whole(name, 30))
    assert resumed.step() == 10


def test_a_whole_folder_under_the_name_of_another_step(resumed: Resumed, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        resumed.path(name, 30).write_bytes(resumed.whole(name, 10))
    assert resumed.step() == 20
    assert "is the commit file of step 10, not of 30" in capsys.readouterr().err


def test_two_files_of_one_step_exchanged(resumed: Resumed) -> None:
    first, second = FILES[1:]
    resumed.path(first).write_bytes(resumed.whole(second))
    resumed.path(second).write_bytes(resumed.whole(first))
    assert resumed.step() == 20


def test_a_commit_file_that_is_sealed_but_not_of_this_format(resumed: Resumed, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(resumed.whole(COMMIT))
    del facts["sha256"]
    for change, said in (({"version": 2}, "version 2 is not known here"), ({"step": 31}, "is the commit file of step 31, not of 30")):
        body = json.dumps({**facts, **change}, indent=1, sort_keys=True).encode().removesuffix(b"\n}") + b",\n"
        resumed.path(COMMIT).write_bytes(body + b' "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
        assert resumed.step() == 20
        assert said in capsys.readouterr().err


def test_what_is_damaged_is_left_as_it_is_and_never_retires_a_sound_one(resumed: Resumed) -> None:
    store = Store(str(resumed.checkpoints))
    checkpoints = CheckpointStore(store, keep_last=1)
    damaged = resumed.whole(FILES[1])[:-1]
    resumed.path(FILES[1]).write_bytes(damaged)
    found = checkpoints.newest(lambda _: None)
    assert found is not None
    assert found.step == 20
    checkpoints.save(checkpoint(25))
    checkpoints.wait(must_succeed=True)
    assert checkpoints.steps() == [25, 30]
    assert verify(store, 25)
    assert resumed.path(FILES[1]).read_bytes() == damaged
