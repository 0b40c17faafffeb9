"""The decision whether a job that starts again and again starts once more, from nothing but the files that its run left."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.mapping import ConfigError
from pipeline.training.failures import exit_with_message
from pipeline.training.labels import LabelUnknown
from pipeline.training.ranks.inherited import check_ranks
from pipeline.training.record.run_folder import RunFolder, RunFolderError, read_lines
from pipeline.training.slurm.attempts import (
    RECORD_VARIABLE,
    Verdict,
    begin_attempt,
    end_attempt,
    free_port,
    job_name,
    note_refusal,
    record_file,
)
from pipeline.training.supervision import guard

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]"}
STEPS = 100


@pytest.fixture(autouse=True)
def unbounded_end() -> Iterator[None]:
    """Takes back the bound that `exit_with_message` sets to the end of the process, because these tests go on."""
    yield
    faulthandler.cancel_dump_traceback_later()


def attempt(run: Path, saved: int | None = None, reason: str | None = None, step: int = 0, job: dict[str, str] = JOB) -> Verdict:
    """One attempt of a run: where it saved, how it says that it ended (None: it was killed), and what comes next."""
    begin_attempt(run, STEPS, job)
    folder = RunFolder(run, writes=True)
    folder.event("start", attempt=folder.attempts() + 1, step=0)
    if saved is not None:
        folder.event("checkpoint", step=saved)
    if reason is not None:
        folder.event("end", step=step or saved or 0, reason=reason)
    folder.close()
    return end_attempt(run, job, 3, 1).verdict


def test_only_the_record_says_that_a_run_is_finished(tmp_path: Path) -> None:
    assert attempt(tmp_path / "a", saved=STEPS, reason="finished") is Verdict.FINISHED
    assert attempt(tmp_path / "b", saved=60, reason="SIGTERM") is Verdict.REQUEUE
    assert attempt(tmp_path / "c", saved=STEPS) is Verdict.REQUEUE, "it was killed before it could say so: one more attempt will"


def test_what_an_earlier_attempt_finished_says_nothing_of_a_longer_run(tmp_path: Path) -> None:
    assert attempt(tmp_path, saved=50, reason="finished") is Verdict.REQUEUE, "the settings ask for more steps by now"
    assert begin_attempt(tmp_path, 50, JOB) is False
    assert begin_attempt(tmp_path, STEPS, JOB) is True
    assert end_attempt(tmp_path, JOB, 3, 0).verdict is Verdict.REQUEUE, "the attempt never came so far as to begin"
    assert attempt(tmp_path, saved=STEPS, reason="finished") is Verdict.FINISHED
    begin_attempt(tmp_path, STEPS, JOB)
    RunFolder(tmp_path, writes=True).event("start", attempt=9, step=0)
    assert end_attempt(tmp_path, JOB, 3, 0).verdict is Verdict.REQUEUE, "the newest attempt has not ended"


def test_a_crash_loop_ends_and_a_new_checkpoint_starts_the_count_again(tmp_path: Path) -> None:
    assert [attempt(tmp_path) for _ in range(2)] == [Verdict.REQUEUE] * 2
    assert attempt(tmp_path, saved=10) is Verdict.REQUEUE
    assert [attempt(tmp_path) for _ in range(3)] == [Verdict.REQUEUE, Verdict.REQUEUE, Verdict.GIVE_UP]
    assert [row["fruitless"] for row in read_lines(record_file(tmp_path)) if row["event"] == "end"] == [1, 2, 0, 1, 2, 3]


def test_a_checkpoint_that_is_written_again_is_no_progress(tmp_path: Path) -> None:
    assert attempt(tmp_path, saved=10) is Verdict.REQUEUE
    assert [attempt(tmp_path, saved=10) for _ in range(3)][-1] is Verdict.GIVE_UP


def test_a_run_that_had_to_go_back_gets_further_from_there(tmp_path: Path) -> None:
    """The newest checkpoint was damaged: what the next attempts save lies before it, and is progress all the same."""
    assert attempt(tmp_path, saved=90) is Verdict.REQUEUE
    assert [attempt(tmp_path, saved=step) for step in (60, 70, 80, 85)] == [Verdict.REQUEUE] * 4
    assert [row["fruitless"] for row in read_lines(record_file(tmp_path)) if row["event"] == "end"] == [0, 1, 0, 0, 0]


def test_a_job_that_was_refused_beside_it_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_attempt(tmp_path, STEPS, JOB)
    other = {"SLURM_JOB_ID": "8"}
    begin_attempt(tmp_path, STEPS, other)
    monkeypatch.setenv(RECORD_VARIABLE, str(record_file(tmp_path)))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    note_refusal(ConfigError("seed"))
    assert end_attempt(tmp_path, JOB, 3, 0, "USR1").verdict is Verdict.REQUEUE
    assert end_attempt(tmp_path, other, 3, 1).verdict is Verdict.REFUSED


def test_another_job_counts_for_itself_and_from_what_it_found(tmp_path: Path) -> None:
    assert [attempt(tmp_path, saved=10) for _ in range(4)][-1] is Verdict.GIVE_UP
    again = {"SLURM_JOB_ID": "8"}
    assert [attempt(tmp_path, job=again) for _ in range(3)] == [Verdict.REQUEUE, Verdict.REQUEUE, Verdict.GIVE_UP]


def test_an_attempt_that_slurm_took_away_is_not_counted(tmp_path: Path) -> None:
    for _ in range(5):
        begin_attempt(tmp_path, STEPS, JOB)
    assert attempt(tmp_path) is Verdict.REQUEUE
    assert read_lines(record_file(tmp_path))[-1]["fruitless"] == 1
    begin_attempt(tmp_path, STEPS, JOB)
    folder = RunFolder(tmp_path, writes=True)
    folder.event("checkpoint", step=5)  # and then the node is gone, with the batch script
    folder.close()
    assert attempt(tmp_path) is Verdict.REQUEUE
    assert read_lines(record_file(tmp_path))[-1]["fruitless"] == 0, "it got further since the last end"


def test_settings_that_the_ranks_refuse_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_attempt(tmp_path, STEPS, JOB)
    monkeypatch.setenv(RECORD_VARIABLE, str(record_file(tmp_path)))
    monkeypatch.setenv("SLURM_JOB_ID", JOB["SLURM_JOB_ID"])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit), exit_with_message():
        raise ConfigError("seed: the checkpoint has another")
    found = end_attempt(tmp_path, JOB, 3, 1)
    assert found.verdict is Verdict.REFUSED
    assert "seed: the checkpoint has another" in found.reason
    begin_attempt(tmp_path, STEPS, JOB)
    with pytest.raises(SystemExit), exit_with_message():
        raise RunFolderError("another run is writing here")  # which ends some time
    assert end_attempt(tmp_path, JOB, 3, 1).verdict is Verdict.REQUEUE, "what was refused before this attempt says nothing of it"


@pytest.mark.parametrize("given", [{"RANK": "abc"}, {"RANK": "3"}, {"RANK": "3", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}])
def test_an_environment_that_is_refused_is_told_to_the_guard_and_not_tried_again(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begin_attempt(tmp_path, STEPS, JOB)
    told = list[tuple[str, str]]()
    monkeypatch.setattr(guard, "note_end", lambda ending, line="": told.append((ending, line)))
    for name, value in {RECORD_VARIABLE: str(record_file(tmp_path)), "SLURM_JOB_ID": JOB["SLURM_JOB_ID"], **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), exit_with_message():
        check_ranks(os.environ)
    (ending, line), *more = told
    assert (ending, more) == ("failed", [])
    assert all(name in line for name in given)
    assert capfd.readouterr().err.endswith(f": {line}\n")
    assert end_attempt(tmp_path, JOB, 3, 1).verdict is Verdict.REFUSED


def test_a_label_of_no_class_which_any_rank_may_find_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begin_attempt(tmp_path, STEPS, JOB)
    given = {RECORD_VARIABLE: str(record_file(tmp_path)), "SLURM_JOB_ID": JOB["SLURM_JOB_ID"], "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), exit_with_message():
        raise LabelUnknown("method.classes: 7 is too few")
    assert capfd.readouterr().err == "error (rank 1): method.classes: 7 is too few\n"
    assert end_attempt(tmp_path, JOB, 3, 1).verdict is Verdict.REFUSED


def test_a_refusal_that_can_not_be_noted_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").touch()
    monkeypatch.setenv(RECORD_VARIABLE, str(record_file(tmp_path)))
    note_refusal(ConfigError("seed"))
    monkeypatch.delenv(RECORD_VARIABLE)
    note_refusal(ConfigError("seed"))
    assert (tmp_path / "slurm").read_bytes() == b""


def test_a_record_that_a_crash_cut_short_goes_on(tmp_path: Path) -> None:
    attempt(tmp_path)
    with open(record_file(tmp_path), "ab") as file:
        file.write(b'{"event": "end", "job"')
    assert attempt(tmp_path) is Verdict.REQUEUE
    assert [json.loads(line)["event"] for line in record_file(tmp_path).read_text().splitlines() if line.endswith("}")] == [
        "begin",
        "end",
    ] * 2


def test_an_end_without_a_beginning_and_a_folder_that_can_not_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no attempt has begun"):
        end_attempt(tmp_path, JOB, 3, 0)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"attempts\.jsonl: can't be written"):
        begin_attempt(tmp_path / "file", STEPS, JOB)


def test_an_element_of_an_array_is_never_called_by_a_number_that_means_the_array() -> None:
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_name(array) == "12_3"
    assert job_name(JOB) == "7"


def test_two_jobs_on_a_node_get_ports_of_their_own() -> None:
    first = free_port("7 0")
    assert free_port("7 0") == first
    with socket.create_server(("127.0.0.1", first)):
        assert free_port("7 0") != first, "a server listens there, if only on one address"
    assert len({free_port(f"{job} 0") for job in range(20)}) > 15, "jobs that start at the same moment look in different places"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunFolderError, match="is free"):
            free_port("7 0", range(port, port + 1))


def test_the_record_is_appended_to_and_nothing_else(tmp_path: Path) -> None:
    attempt(tmp_path)
    before = record_file(tmp_path).read_bytes()
    attempt(tmp_path)
    assert record_file(tmp_path).read_bytes().startswith(before)
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["attempts.jsonl"]
