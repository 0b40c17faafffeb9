"""A run that is killed, cut off from its store and started again, many times at drawn moments, ends as if nothing had been.

A failure shows the seed; --seed=<seed> draws the same again. --long makes it dozens of times.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launch.local.object_store import SeaweedFS
from pipeline.training.checkpoint.ownership import OWNER
from pipeline.training.checkpoint.store import COMMIT, CheckpointStore, folder_name, read, verify
from pipeline.training.record.run_folder import read_lines
from shards.store import Store
from tests.datasets import photographs, write_dataset
from tests.faults.chaos import Launchers
from tests.faults.proxy import Fault, Proxy, Rule
from tests.launching import launch, losses, run_program, setting_list, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(900)]
EVERY, KEEP, RANKS = 2, 2, 2
SETTINGS = [
    *("--recipe", "inpainting", "--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
    *("--training.global_batch", "8", "--training.micro_batch", "4", "--schedule.kind", "constant", "--monitoring.port", "0"),
    *("--checkpoint.every", str(EVERY), "--checkpoint.keep_last", str(KEEP), "--data.cache", "none", "--data.shuffle_block", "32"),
]
FOREVER = 1_000_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "set"
    write_dataset(folder, photographs(60, 140, 160), [25, 30, 5])
    return folder


class Chaos:
    """One run, and what is done to it.

    Attributes:
        store: its checkpoints, seen without the proxy.
        events: what was done, in order.
    """

    def __init__(self, launchers: Launchers, shards: Path, run: Path, url: str, store: Store, environment: dict[str, str]) -> None:
        self.launchers, self.shards, self.run, self.url, self.store, self.environment = launchers, shards, run, url, store, environment
        self.events: list[str] = []

    def start(self, steps: int = FOREVER) -> None:
        """Starts an attempt."""
        settings = [*SETTINGS, "--checkpoint.url", self.url] if self.url else SETTINGS
        self.launchers.start(RANKS, setting_list(self.shards, self.run, steps, *settings), self.environment)

    def attempt(self, progress: int) -> None:
        """Starts an attempt and waits until it has made some steps."""
        before = len(self.starts())
        self.start()
        self.wait_until(lambda: len(self.starts()) > before)
        first = int(str(self.starts()[-1]["step"]))
        self.go_on(first + progress)

    def go_on(self, step: int) -> None:
        """Waits until the attempt that runs has taken this step."""
        self.wait_until(lambda: self.step() >= step)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Waits for a condition while the attempt runs."""
        wait_until(lambda: condition() or self.launchers.ended() is not None, self.launchers.log)
        assert self.launchers.ended() is None, f"the attempt ended by itself; the log:\n{self.launchers.log.read_text()[-6000:]}"

    def starts(self) -> list[dict[str, object]]:
        """The attempts' first lines."""
        return [row for row in read_lines(self.run / "events.jsonl") if row["event"] == "start"]

    def step(self) -> int:
        """The step that the newest attempt has taken."""
        rows, starts = read_lines(self.run / "history.jsonl"), self.starts()
        return max((row["step"] for row in rows if starts and row["attempt"] == starts[-1]["attempt"]), default=0)

    def kill(self, whom: str) -> None:
        """kill -9 of a rank, the launcher or everything."""
        assert self.launchers.launcher is not None
        if whom == "everything":
            return self.launchers.kill()
        return (self.launchers.launcher if whom == "launcher" else self.launchers.ranks[int(whom[-1])]).kill()

    def log(self) -> str:
        """Output of all attempts."""
        return self.launchers.log.read_text()


def assert_as_if_nothing_had_been(chaos: Chaos, tmp_path: Path) -> None:
    """Takes the chaotic run a few steps on to its end, and compares it with one that nothing happened to."""
    steps = chaos.step() + 3
    chaos.start(steps)
    assert chaos.launchers.wait() == 0, chaos.log()[-6000:]
    quiet = tmp_path / "quiet"
    done = launch(RANKS, *setting_list(chaos.shards, quiet, steps, *SETTINGS, "--checkpoint.every", "1000"), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = read(chaos.store, steps), read(Store(str(quiet / "checkpoints")), steps)
    assert one.tensors.keys() == other.tensors.keys()
    for file, tensors in other.tensors.items():
        assert one.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert one.tensors[file][name].equal(tensor), (file, name)
    assert one.facts["position"] == other.facts["position"]
    assert losses(chaos.run) == losses(quiet)
    said = run_program("launch/ledger.py", str(chaos.run))
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"{steps} steps count" in said.stdout
    assert_nothing_is_left(chaos)


def assert_nothing_is_left(chaos: Chaos) -> None:
    """No process, no temporary file, no unfinished upload, no checkpoint but those that the rule keeps."""
    assert not [pid for pid in chaos.launchers.started if psutil.pid_exists(pid)]
    steps = CheckpointStore(chaos.store).steps()
    assert len(steps) == KEEP
    for step in steps:
        verify(chaos.store, step)
    names = {"generator", "generator.optimiser", "discriminator", "discriminator.optimiser"}
    files = {OWNER} | {f"{folder_name(step)}/{name}" for step in steps for name in (COMMIT, *(f"{name}.safetensors" for name in names))}
    if chaos.store.local is not None:
        found = {str(path.relative_to(chaos.store.local)) for path in chaos.store.local.rglob("*") if not path.is_dir()}
        assert {path.name for path in chaos.store.local.iterdir() if path.is_dir()} == {folder_name(step) for step in steps}
    else:
        found = {name for name, _ in chaos.store.list()}
        assert chaos.store.fs.list_multipart_uploads(chaos.store.root.partition("/")[0]) == []
    assert found == files
    expected = {"config.yaml", "events.jsonl", "history.jsonl", "report.html", "targets", "pictures", "checkpoints", ".lock", ".run-name"}
    assert {path.name for path in chaos.run.iterdir()} <= expected | {"quarantine.jsonl"}
    assert not list((chaos.run / "targets").glob("*"))
    assert not [path for path in Path("/dev/shm").glob("*") if any(str(pid) in path.name for pid in chaos.launchers.started)]  # noqa: S108


@contextmanager
def struck(proxy: Proxy, chaos: Chaos, rule: Rule, whom: str) -> Iterator[None]:
    """Kills at the moment when a request of this kind arrives, which the store gets all the same: what is on its way is not called back."""
    hit = threading.Event()

    def strike() -> None:
        chaos.kill(whom)
        hit.set()

    rule.action = strike
    proxy.rules = [rule]
    try:
        yield
        assert hit.wait(120), chaos.log()[-4000:]
    finally:
        proxy.rules = []


REQUESTS = {
    "an upload begins": lambda draw: Rule(Fault.NONE, key="run/step_*.safetensors", method="PUT", first=draw.randrange(4), count=1),
    "an upload is answered by a reset": lambda draw: Rule(Fault.RESET, "run/step_*.safetensors", "PUT", first=draw.randrange(4), count=1),
    "the commit file is written": lambda _: Rule(Fault.NONE, key=f"run/step_*/{COMMIT}", method="PUT", count=1),
    "a checkpoint is retired": lambda draw: Rule(Fault.NONE, key="run/step_*", method="DELETE", first=draw.randrange(4), count=1),
}
KILLS = ["rank 0", "rank 1", "launcher", "everything"]


def schedule(draw: random.Random, long: bool) -> list[tuple[str, str]]:
    """Events of 30 turns, each an event and its victim, in a drawn order; of 13 if not long: every victim of a kill, every other event."""
    turns = [("kill", whom) for whom in KILLS for _ in range(3)]
    turns += [(request, whom) for request in REQUESTS for whom in ("rank 0", draw.choice(["everything", "rank 1", "launcher"]))]
    turns += [("the owner is written", "everything"), ("SIGTERM, then kill", "everything"), ("SIGTERM, then kill", "rank 0")]
    turns += [("store restarts", ""), ("store restarts", "rank 0"), ("store restarts", "everything")]
    turns += [("store stops", ""), ("store stops", "everything"), ("store stops", "rank 0"), ("start without store", "everything")]
    draw.shuffle(turns)
    if long:
        return turns
    first = {what if what != "kill" else f"{what} {whom}": (what, whom) for what, whom in reversed(turns)}
    return list(first.values())


def disturb(chaos: Chaos, server: SeaweedFS, proxy: Proxy, draw: random.Random, what: str, whom: str) -> None:
    """One turn: an attempt, what happens to it, and its end where it has one."""
    if what == "the owner is written":
        with struck(proxy, chaos, Rule(Fault.NONE, key=f"run/{OWNER}", method="PUT", count=1), whom):
            chaos.start()
    elif what in REQUESTS:
        chaos.attempt(draw.randint(1, 2 * EVERY))
        with struck(proxy, chaos, REQUESTS[what](draw), whom):
            pass
    else:
        chaos.attempt(draw.randint(1, 3 * EVERY))
        if what == "SIGTERM, then kill":
            assert chaos.launchers.launcher is not None
            chaos.launchers.launcher.send_signal(signal.SIGTERM)
            time.sleep(draw.uniform(0.0, 0.3))  # the moment is what is drawn
        elif what == "store restarts":
            server.kill()
            time.sleep(draw.uniform(0.0, 0.5))
            server.start()
        elif what == "start without store":
            server.kill()
        elif what == "store stops":
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(draw.uniform(0.1, 1.0))
        if what in ("store restarts", "store stops") and not whom:
            if what == "store stops":
                assert server.pid is not None
                os.kill(server.pid, signal.SIGCONT)
            saved = len(read_lines(chaos.run / "events.jsonl"))
            chaos.wait_until(lambda: any(row["event"] == "checkpoint" for row in read_lines(chaos.run / "events.jsonl")[saved:]))
            whom = "everything"
        if what != "kill" or draw.random() < 0.7:
            time.sleep(draw.uniform(0.0, 0.2))
        chaos.kill(whom)
    if what == "store stops" and server.pid is not None:
        os.kill(server.pid, signal.SIGCONT)
    chaos.launchers.wait()
    if what == "start without store":
        attempts, said = len(chaos.starts()), len(chaos.log())
        chaos.start()
        assert chaos.launchers.wait() == 1
        assert chaos.store.describe() in chaos.log()[said:]
        assert len(chaos.starts()) == attempts, "it started anew"
        server.start()


def test_kills_with_the_checkpoints_in_s3(shards: Path, tmp_path: Path, draw: random.Random, long: bool) -> None:
    with SeaweedFS(tmp_path / "server") as server, Proxy(server.endpoint) as proxy, Launchers(tmp_path / "log") as launchers:
        server.make_bucket("chaos")
        store = Store("s3://chaos/run", server.options)
        environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        chaos = Chaos(launchers, shards, tmp_path / "run", store.url, store, environment)
        for what, whom in schedule(draw, long):
            began = time.monotonic()
            chaos.events.append(f"{what} {whom}")
            disturb(chaos, server, proxy, draw, what, whom)
            print(f"{len(chaos.events)}. {what} {whom}: step {chaos.step()}, {time.monotonic() - began:.1f} s", flush=True)
        assert len(chaos.events) == (30 if long else 13)
        assert_as_if_nothing_had_been(chaos, tmp_path)


def has_unfinished_file(checkpoints: Path) -> bool:
    """True while a checkpoint is being written. The run may delete a checkpoint while the folder is listed: `glob` raises then."""
    try:
        return any(checkpoints.glob("step_*/.partial-*"))
    except FileNotFoundError:
        return False


def test_kills_with_the_checkpoints_in_a_folder(shards: Path, tmp_path: Path, draw: random.Random, long: bool) -> None:
    with Launchers(tmp_path / "log") as launchers:
        run = tmp_path / "run"
        chaos = Chaos(launchers, shards, run, "", Store(str(run / "checkpoints")), {})
        turns = [*[("kill", whom) for whom in KILLS], *[("in a save", whom) for whom in ["rank 0", "everything"] * (4 if long else 1)]]
        draw.shuffle(turns)
        for what, whom in turns:
            chaos.attempt(draw.randint(1, 3 * EVERY))
            if what == "in a save":
                chaos.wait_until(lambda: has_unfinished_file(run / "checkpoints"))
            chaos.kill(whom)
            launchers.wait()
            print(f"{what} {whom}: step {chaos.step()}", flush=True)
        assert_as_if_nothing_had_been(chaos, tmp_path)
