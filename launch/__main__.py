"""Starts ranks with the options of `accelerate launch`, and keeps the launcher's own text in a file: python -m launch [OPTION ...]
launch/pretrain.py [SETTING ...]

The last line of a run that fails names the file. A signal that stops the launcher of a single rank goes on to the rank, which saves and
ends. Under nohup the launcher leaves SIGHUP alone, so the run goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

from pipeline.training.supervision.guard import LAUNCHER_LOG

SIGNALS = "PET_SIGNALS_TO_HANDLE"
"""Environment variable of torch with the signals that the launcher of several ranks handles and passes on."""


def main() -> int:
    """Launches, and returns the exit code: that of the first rank that failed, or 128 and the number of the signal that ended the run."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        os.environ.setdefault(SIGNALS, "SIGTERM,SIGINT,SIGQUIT")
    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop.pass_on)  # the launcher of several ranks has handlers of its own, which come later
    descriptor, name = tempfile.mkstemp(prefix="launcher-", suffix=".log")
    os.environ[LAUNCHER_LOG] = name
    console, code = sys.stderr, 0
    try:
        with open(descriptor, "w", encoding="utf-8", buffering=1) as log:
            sys.stderr = log  # before torch is imported, whose loggers keep it; the ranks inherit the descriptor, which stays the console
            code = _launch()
    except SystemExit as error:  # the launcher's options are refused, and no rank has begun
        console.write(Path(name).read_text(encoding="utf-8"))
        raise SystemExit(error.code) from None
    finally:
        sys.stderr = console
        if not code:
            Path(name).unlink()
    return code or stop.code


class _Stop:
    """The stop of a single rank by a signal to its launcher.

    Attributes:
        code: exit code of a launcher whose rank ended well after the signal; 0: no signal came.
    """

    code = 0

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Passes a signal on to the rank, whose end the launcher waits for; ends the launcher where it has started no rank yet."""
        self.code = 128 + number
        ranks: list[str] = []
        with suppress(OSError):
            ranks = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not ranks:
            raise SystemExit(self.code)
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(int(rank), number)


def _launch() -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415

    arguments = launch_command_parser().parse_args()
    try:
        launch_command(arguments)
    except (subprocess.CalledProcessError, ChildFailedError, SignalException, KeyboardInterrupt) as error:
        traceback.print_exc()
        if isinstance(error, SignalException):
            return 128 + error.sigval
        if isinstance(error, KeyboardInterrupt):
            return 128 + signal.SIGINT
        code = error.returncode if isinstance(error, subprocess.CalledProcessError) else error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    return 0


if __name__ == "__main__":
    sys.exit(main())
