"""Batches are copied to the device once, beside the computation, and a batch that is on its way does not count as consumed."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import recipes
from pipeline.config import DataConfig, parse
from pipeline.stream.batch.quarantine import QuarantineFull
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.training.device_batches import DeviceBatch, DeviceCopies, SideStream, arrive, host_labels
from pipeline.training.loop import pretrain
from pipeline.training.phases import Phases
from pipeline.training.reporting.reporter import Reporter, StepFacts
from pipeline.training.supervision.interruption import Interruption
from tests.datasets import photographs, write_dataset
from tests.launching import wait_until
from tests.pipeline.training.test_loop import run_settings
from tests.pipeline.training.test_phases import Ticks


class LateStream:
    """A stream whose copies are made as late as a device may make them: when the computation arrives at their mark.

    Attributes:
        queued: copies that were queued.
        made: copies that were made.
    """

    def __init__(self) -> None:
        self.queued = self.made = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def copy(self, tensor: Tensor) -> Tensor:
        copy = torch.full_like(tensor, 1)
        self._waiting.append((tensor, copy))
        self.queued += 1
        return copy

    def mark(self) -> int:
        return self.queued

    def arrive(self, mark: int, copies: Iterable[Tensor]) -> None:
        for source, copy in self._waiting[: mark - self.made]:
            copy.copy_(source)
        del self._waiting[: mark - self.made]
        self.made = mark
        assert all(len(each) for each in copies)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data set")
    write_dataset(folder, photographs(40, 60, 60), [20, 20])
    return folder


def stream_config(shards: Path) -> StreamConfig:
    return StreamConfig(DataConfig(shards=str(shards), threads=1, ready_batches=4), image_size=32, global_batch=8)


def test_the_next_batch_is_on_its_way_and_not_consumed(shards: Path) -> None:
    with StreamLoader(stream_config(shards)) as loader:
        expected = [(batch, loader.state_dict()) for batch in itertools.islice(loader, 4)]
    stream, phases = LateStream(), Phases(Ticks())
    with StreamLoader(stream_config(shards), copy=DeviceCopies(stream).start) as loader:
        batches = iter(loader)
        for number, (wanted, position) in enumerate(expected, start=1):
            if number > 1:
                wait_until(lambda: loader.counters.totals()["images"] >= 8 * (number + 2))  # noqa: B023 - called in this turn
            batch = next(batches)
            assert isinstance(batch, DeviceBatch)
            assert loader.state_dict() == position, "the position is that behind the batch, not behind its copied follower"
            if number > 1:
                assert stream.queued == 4 * (number + 1), "images, masks, labels and keys of this batch and of the next one"
            phases.begin()
            arrive(batch, phases)
            phases.end(9.0)
            assert stream.made == 4 * number, "the computation waits for its own batch alone"
            for name in ("images", "masks", "labels", "keys", "sample_ids"):
                assert torch.equal(getattr(batch, name), getattr(wanted, name)), name
            assert (batch.epoch, batch.index) == (wanted.epoch, wanted.index)
            assert batch.host_labels is host_labels(batch) is not batch.labels
    assert [each.phases for each in phases.read()] == [{"host_to_device": 1.0}] * 4


def test_without_copies_the_batch_is_handed_out_as_it_is(shards: Path) -> None:
    phases = Phases(Ticks())
    with StreamLoader(stream_config(shards)) as loader:
        batch = next(iter(loader))
    phases.begin()
    arrive(batch, phases)
    phases.end(1.0)
    assert not isinstance(batch, DeviceBatch)
    assert phases.read()[0].phases == {}
    assert DeviceCopies.to(torch.device("cpu")) is None


def test_an_error_of_the_next_batch_comes_in_its_own_turn(tmp_path: Path) -> None:
    """Copying ahead looks at the next batch early, but its step is the one that fails."""
    write_dataset(tmp_path, [*photographs(8, 60, 60), b"no picture"], [9])
    data = DataConfig(shards=str(tmp_path), threads=1, flip=False, shuffle_block=1, lanes=1, max_bad_fraction=0.0, ready_batches=9)
    seen = list[int]()

    def consume(loader: StreamLoader) -> None:
        for batch in loader:
            seen.append(batch.index)
            wait_until(lambda: loader.counters.totals().get("bad_samples_undecodable", 0) > 0)

    config = StreamConfig(data, image_size=32, global_batch=1)
    with StreamLoader(config, copy=DeviceCopies(LateStream()).start) as loader, pytest.raises(QuarantineFull):
        consume(loader)
    assert seen
    assert seen == list(range(len(seen)))


def test_a_run_with_copies_is_stopped_and_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = run_settings(tmp_path, 5, "--training.log_every", "1", "--evaluation.every", "0", "--training.pictures_every", "0")
    stream, step = LateStream(), Reporter.step

    def history(name: str) -> list[dict[str, Any]]:
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [{key: row[key] for key in ("step", "epoch", "batch", "samples", "losses")} for row in rows]

    def train(name: str) -> bool:
        with Interruption() as interruption:
            return pretrain(parse(recipes.SETTINGS, [*settings, "--run", str(tmp_path / name)]), interruption).finished

    def stop(self: Reporter, facts: StepFacts) -> None:
        step(self, facts)
        if facts.step == 2:
            signal.raise_signal(signal.SIGTERM)

    assert train("without")
    monkeypatch.setattr(DeviceCopies, "to", classmethod(lambda cls, _: cls(stream)))
    monkeypatch.setattr(Reporter, "step", stop)
    assert not train("stopped")
    monkeypatch.setattr(Reporter, "step", step)
    assert train("stopped")
    assert history("stopped") == history("without")
    assert stream.queued > stream.made, "no batch was on its way when a run ended"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_copies_on_a_gpu_are_those_of_their_batch_however_busy_it_is(shards: Path) -> None:
    """The computation is far behind the host, whose buffers and copies are dropped at once: nothing may be used again too early."""
    device = torch.device("cuda", 0)
    with StreamLoader(stream_config(shards)) as loader:
        expected = [int(batch.images.long().sum()) for batch in itertools.islice(loader, 12)]
    copies, sums = DeviceCopies(SideStream(device)), list[Tensor]()
    with StreamLoader(stream_config(shards), copy=copies.start) as loader:
        for batch in itertools.islice(loader, 12):
            arrive(batch, Phases.of(device))
            torch.cuda._sleep(50_000_000)  # cycles
            sums.append(batch.images.long().sum())
    assert torch.stack(sums).tolist() == expected
