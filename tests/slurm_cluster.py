"""A real SLURM on one machine, for tests: munged, slurmctld and one slurmd a node, without systemd, as root or as any user.

Each node has a host name of its own, in a namespace of its own, so that jobs see n0 and n1 as they would see two machines; they share the
file system and the loopback interface. Nothing outside the folder is touched, and nothing runs when the `with` block is over.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_port

PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "srun": "slurm-wlm"}
"""Programs that a cluster needs, and the Debian package of each."""
_NODE = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
_SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmCluster:
    """A cluster that lives as long as the `with` block.

    Args:
        folder: where its configuration, state and logs go.
        nodes: how many; they are called n0, n1 and so on.
        cpus: that each node pretends to have.
        kill_wait: seconds that a job has between SIGTERM and SIGKILL.

    Attributes:
        environment: what a SLURM command needs beside the caller's own environment.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4, kill_wait: int = 30) -> None:
        self.folder = folder.resolve()
        self.nodes = [f"n{number}" for number in range(nodes)]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._cpus, self._kill_wait = cpus, kill_wait
        self._sockets = Path()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def missing() -> str:
        """The Debian packages to install before a cluster can be started; empty where none is missing."""
        packages = {package for program, package in PROGRAMS.items() if shutil.which(program, path=_SYSTEM_PATH) is None}
        return " ".join(sorted(packages))

    def __enter__(self) -> SlurmCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemons and waits until every node is idle.

        Raises:
            AssertionError: a daemon ended, or the nodes did not come up; the ends of the logs are in the message.
        """
        for name in ("state", "spool", "log", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name).chmod(0o700)
        # the path of a socket may have 107 characters, and pytest's folders are long
        self._sockets = Path(tempfile.mkdtemp(prefix="munge-"))
        self._sockets.chmod(0o711)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        hosts = self.folder / "hosts"
        hosts.write_text(Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {node}\n" for node in self.nodes))
        conf = self.folder / "slurm.conf"
        conf.write_text(self._configuration([free_port() for _ in range(1 + len(self.nodes))]))
        munged = ["munged", "--foreground", "--num-threads=2", f"--key-file={key}", f"--socket={self._sockets / 'socket'}"]
        munged += [f"--{what}-file={self.folder / 'munge' / what}" for what in ("pid", "log", "seed")]
        self._spawn("munged", munged)
        self.wait_until((self._sockets / "socket").exists, "munged makes its socket")
        self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-f", str(conf)])
        for node in self.nodes:
            shell = ["sh", "-c", _NODE, "sh", node, str(hosts), "slurmd", "-D", "-c", "-N", node, "-f", str(conf)]
            self._spawn(node, [*_unshare(), *shell])
        self.wait_until(lambda: set(self.node_states().values()) == {"idle"}, "every node is idle", seconds=60)

    def stop(self) -> None:
        """Cancels every job and ends every process of the cluster and its jobs."""
        if "slurmctld" in self._processes and self._processes["slurmctld"].poll() is None:
            with suppress(subprocess.TimeoutExpired, AssertionError):
                jobs = self.command("squeue", "--noheader", "--format=%A", check=False).stdout.split()
                if jobs:
                    self.command("scancel", "--full", *jobs, check=False)
                    self.wait_until(lambda: not self.command("squeue", "-h", "-t", "R,CG,CF", check=False).stdout.strip(), "jobs end", 15)
        family = [child for process in self._processes.values() for child in _children(process.pid)]
        for name in reversed(self._processes):
            self._processes[name].terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        stragglers = [*family, *self._jobs_processes()]
        for straggler in stragglers:
            with suppress(psutil.Error):
                straggler.kill()
        psutil.wait_procs(stragglers, timeout=10)
        if self._sockets != Path():
            shutil.rmtree(self._sockets, ignore_errors=True)

    def command(self, *arguments: str, check: bool = True, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a SLURM command against this cluster, for at most two minutes."""
        environment = {**os.environ, **self.environment, "PATH": _SYSTEM_PATH, **environment}
        done = subprocess.run(arguments, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}{done.stdout}\n{self.logs()}"
        return done

    def node_states(self) -> dict[str, str]:
        """Node -> state, as sinfo says it, in lower case; empty while the controller does not answer."""
        listed = self.command("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout
        return dict(line.split() for line in listed.splitlines())

    def job(self, job: str) -> dict[str, str]:
        """Fields that `scontrol show job` gives for a job; empty when SLURM has forgotten it."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job, check=False).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait_for_end(self, *jobs: str, seconds: float = 240) -> dict[str, str]:
        """Waits until jobs are neither pending nor running nor about to be; job -> state."""
        last: dict[str, str] = {}

        def over() -> bool:
            last.update({job: self.job(job).get("JobState", "FORGOTTEN") for job in jobs})
            return all(state not in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"} for state in last.values())

        self.wait_until(over, f"the end of {', '.join(jobs)}", seconds)
        return last

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
        """Waits for a condition.

        Raises:
            AssertionError: it does not become true in time, or a daemon ended.
        """
        end = time.monotonic() + seconds
        while not condition():
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            assert not ended, f"{', '.join(ended)} ended before this was true: {what}\n{self.logs()}"
            assert time.monotonic() < end, f"not true within {seconds:.0f} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted((self.folder / "log").glob("*")))

    def _configuration(self, ports: Sequence[int]) -> str:
        user = pwd.getpwuid(os.getuid()).pw_name
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        nodes = "".join(
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} RealMemory=8000 State=UNKNOWN\n"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        return f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self._sockets}/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait={self._kill_wait}
MinJobAge=3600
CommunicationParameters=NoInAddrAny
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
SlurmdParameters=config_overrides
{nodes}PartitionName=main Nodes={",".join(self.nodes)} Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
"""

    def _spawn(self, name: str, command: list[str]) -> None:
        environment = {**os.environ, **self.environment, "PATH": _SYSTEM_PATH}
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _jobs_processes(self) -> list[psutil.Process]:
        """Processes that a job of this cluster started and that outlived it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"] and process.pid != os.getpid():
                    found.append(process)
        return found


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _unshare() -> list[str]:
    """Gives a node its own host name and mounts; an ordinary user needs a user namespace for it, too."""
    own = ["unshare", "--mount", "--uts"]
    if os.getuid() == 0 and subprocess.run([*own, "true"], capture_output=True, check=False).returncode == 0:
        return own
    return [*own, "--user", "--map-current-user", "--keep-caps"]
