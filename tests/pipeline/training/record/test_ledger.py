"""The ledger finds a run clean when it is, and says which step is not when it is not. Records are made by the real loader."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import DataConfig, SourceConfig
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.training.record.ledger import Account, account
from pipeline.training.record.run_folder import RunFolderError
from pipeline.training.record.samples_digest import samples_digest, samples_text
from tests.datasets import photographs, write_dataset

COUNTS = [20, 31, 9, 41]
TOTAL = sum(COUNTS)


class Record:
    """Writes what a run writes: attempts of a real loader, each from a state that an earlier one reached."""

    def __init__(self, folder: Path, data: DataConfig) -> None:
        self.folder, self.data = folder, data
        self.states: dict[int, dict[str, int]] = {}
        self.events: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        folder.mkdir()
        sources = {name: {"shards": source.shards, "weight": source.weight} for name, source in data.sources.items()}
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 5, "data": {"shards": data.shards, "sources": sources}}))

    def attempt(self, start: int, steps: int, global_batch: int = 8, world: int = 2) -> Record:
        """Goes on behind step `start`; ranks one after the other, which is the same to the record."""
        number = len(self.events) + 1
        digests: dict[int, int] = {}
        for rank in range(world):
            config = StreamConfig(self.data, 32, global_batch, seed=5, quarantine=self.folder / "quarantine.jsonl")
            with StreamLoader(config, rank, world) as loader:
                if start in self.states:
                    loader.load_state_dict(self.states[start])
                position = loader.state_dict()
                shares = loader.samples_per_dataset()
                for step, batch in enumerate(itertools.islice(loader, steps), start + 1):
                    digests[step] = digests.get(step, 0) + samples_digest(batch.sample_ids.numpy())
                    self.states[step] = loader.state_dict()
        event = {"event": "start", "attempt": number, "world_size": world, "step": start, "position": position, "shares": shares}
        self.events.append(event)
        self.rows += [{"step": step, "attempt": number, "samples": samples_text(digest), "skipped": []} for step, digest in digests.items()]
        return self

    def write(self) -> Path:
        for name, rows in (("events", self.events), ("history", self.rows)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_dataset(folder, photographs(TOTAL, 40, 48), COUNTS)
    return folder


@pytest.fixture
def record(shards: Path, tmp_path: Path) -> Record:
    return Record(tmp_path / "run", DataConfig(shards=str(shards), threads=1, shuffle_block=4))


def assert_clean(found: Account) -> None:
    assert found.problems == []
    for epoch in found.epochs:
        assert epoch.repeated <= found.replaced


def test_a_run_of_kills_other_worlds_and_other_batches_is_clean(record: Record) -> None:
    record.attempt(0, 9).attempt(6, 5, world=1).attempt(11, 3, world=3).attempt(14, 4, global_batch=16, world=5).attempt(16, 12, 16, 2)
    found = account(record.write())
    assert_clean(found)
    assert (found.attempts, found.worlds, found.steps, found.undone) == (5, [2, 1, 3, 5, 2], 28, 5)
    trained = sum(epoch.seen for epoch in found.epochs)
    assert trained == 14 * 8 + 14 * 16
    assert [(epoch.number, epoch.complete) for epoch in found.epochs] == [(0, True), (1, True), (2, True), (3, False)]
    assert all(epoch.seen + epoch.left_out == TOTAL for epoch in found.epochs)
    assert all(epoch.left_out < 16 for epoch in found.epochs[:3])


def test_steps_behind_the_start_of_the_newest_attempt_do_not_count(record: Record) -> None:
    found = account(record.attempt(0, 10).attempt(4, 2).write())
    assert_clean(found)
    assert (found.steps, found.undone) == (6, 6)


def change_digest(record: Record) -> None:
    record.rows[4], record.rows[5] = (
        {**record.rows[4], "samples": record.rows[5]["samples"]},
        {**record.rows[5], "samples": record.rows[4]["samples"]},
    )


def lose_line(record: Record) -> None:
    del record.rows[4]


def swap_lines(record: Record) -> None:
    record.rows[4], record.rows[5] = record.rows[5], record.rows[4]


def skip_batch(record: Record) -> None:
    record.states[12] = record.states[11]
    record.states[10] = record.states[11]
    record.attempt(10, 3)


def forget_attempt_lines(record: Record) -> None:
    record.attempt(12, 4)
    record.rows = [row for row in record.rows if row["step"] != 13]


def lose_end(record: Record) -> None:
    del record.rows[4:]
    record.events.append({"event": "checkpoint", "step": 12})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_end, "the history ends with step 4, but step 12 was saved"),
        (change_digest, r"step 5 \(attempt 1\) saw other samples"),
        (lose_line, "step 5 is not in the history"),
        (swap_lines, r"step 5 \(attempt 1\) stands in the history behind step 6"),
        (skip_batch, r"attempt 2 began at \(epoch, consumed\) .*, the steps before it ended at"),
        (forget_attempt_lines, "step 13 is not in the history"),
    ],
)
def test_what_is_not_right_is_named(record: Record, damage: Callable[[Record], None], message: str) -> None:
    record.attempt(0, 12)
    damage(record)
    found = account(record.write())
    assert any(re.search(message, problem) for problem in found.problems), found.problems


def test_replaced_samples_are_part_of_the_order(tmp_path: Path) -> None:
    pictures = photographs(TOTAL, 40, 48)
    for bad in (3, 30, 77):
        pictures[bad] = b"\xff\xd8\xff damaged"
    write_dataset(tmp_path / "set", pictures, COUNTS)
    record = Record(tmp_path / "run", DataConfig(shards=str(tmp_path / "set"), threads=1, shuffle_block=4, max_bad_fraction=0.1))
    found = account(record.attempt(0, 20).attempt(18, 8, world=3).write())
    assert_clean(found)
    assert found.replaced > 3
    (record.folder / "quarantine.jsonl").write_text("")
    assert "saw other samples" in account(record.folder).problems[0]


def test_a_mixture_is_accounted_source_by_source(shards: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "second", photographs(37, 44, 48), [37])
    sources = {"large": SourceConfig(str(shards), 3), "small": SourceConfig(str(tmp_path / "second"), 1)}
    record = Record(tmp_path / "run", DataConfig(sources=sources, threads=1, shuffle_block=4))
    found = account(record.attempt(0, 15).attempt(12, 20, world=3).write())
    assert_clean(found)
    assert found.steps == 32
    assert {(epoch.source, epoch.number) for epoch in found.epochs if epoch.complete} >= {("large", 0), ("small", 0)}
    assert sum(epoch.batches for epoch in found.epochs if epoch.source == "small") == 32


def test_a_history_that_begins_late_is_named_once_and_still_counted(record: Record) -> None:
    record.attempt(0, 12).rows[:3] = []
    found = account(record.write())
    assert (found.steps, found.epochs) == (9, [])
    assert found.problems == ["step 1 is not in the history, so there is no proof of what it trained on"]


def test_a_line_without_its_facts_is_no_record(record: Record) -> None:
    del record.attempt(0, 3).rows[1]["skipped"]
    with pytest.raises(RunFolderError, match=r"its record can't be read \(KeyError: 'skipped'\)"):
        account(record.write())


def test_what_is_no_record_is_refused(record: Record, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="names no attempt"):
        account(tmp_path / "nowhere")
    record.attempt(0, 3).write()
    write_dataset(tmp_path / "other$x", photographs(TOTAL, 40, 52), COUNTS)
    other = replace(record.data, shards=str(tmp_path / "other$$x"))  # as the settings of a run spell it
    (record.folder / "config.yaml").write_text(yaml.safe_dump({"data": {"shards": other.shards, "sources": {}}}))
    with pytest.raises(RunFolderError, match="read another data set"):
        account(record.folder)
