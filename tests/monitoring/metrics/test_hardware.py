"""Readings of the machine and of a rank's GPU, through the real binding of NVIDIA's library, and without an answer."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from monitoring.metrics import hardware
from monitoring.metrics.hardware import Gpu, host_memory
from tests.conftest import ROOT

DRIVER = """
#include <string.h>
#ifdef DOWN
int nvmlInitWithFlags(unsigned flags) { return 9; }
#else
int nvmlInitWithFlags(unsigned flags) { return 0; }
#endif
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Not Found"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)1;
    return strcmp(uuid, "GPU-01234567-89ab-cdef-0123-456789abcdef") ? 6 : 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = 80000000000ull; memory[1] = 77000000000ull; memory[2] = 3000000000ull;
    return 0;
}
#ifndef PART
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { rates[0] = 75; rates[1] = 5; return 0; }
#endif
"""
READ = """
from monitoring.metrics.hardware import Gpu
gpu = Gpu.find("GPU-01234567-89ab-cdef-0123-456789abcdef")
print(gpu and (gpu.memory_used(), gpu.memory_total(), gpu.utilisation()), Gpu.find("GPU-another"))
"""


def read(folder: Path, *defined: str) -> subprocess.CompletedProcess[str]:
    """Reads the GPU in a process whose driver is a stand-in for NVIDIA's."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here (Debian: gcc)")
    (folder / "driver.c").write_text(DRIVER)
    subprocess.run(
        ["cc", "-shared", "-fPIC", *defined, "-o", str(folder / "libnvidia-ml.so.1"), str(folder / "driver.c")], check=True, timeout=60
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run([sys.executable, "-c", READ], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)


def test_memory_and_utilisation_of_a_gpu_come_from_its_driver(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: the extra gpu")
    found = read(tmp_path)
    assert found.stdout == "(3000000000.0, 80000000000.0, 0.75) None\n"
    assert "GPU-another are not reported: Not Found" in found.stderr


def test_a_value_that_the_driver_does_not_have_is_nan(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: the extra gpu")
    assert read(tmp_path, "-DPART").stdout == "(3000000000.0, 80000000000.0, nan) None\n"


def test_a_driver_that_is_not_loaded_is_one_log_line_and_no_metrics(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: the extra gpu")
    found = read(tmp_path, "-DDOWN")
    assert found.stdout == "None None\n"
    assert "Driver Not Loaded" in found.stderr


def test_without_the_binding_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpu.find("GPU-0") is None
    assert "pip install -e '.[gpu]'" in caplog.text


def test_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert host_memory("total") == psutil.virtual_memory().total
    assert 0 < host_memory("used") < host_memory("total")
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    400 kB\n")
    monkeypatch.setattr(hardware, "_MEMORY", tmp_path / "meminfo")
    assert (host_memory("total"), host_memory("used")) == (1024_000, 614_400)
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\n")
    assert math.isnan(host_memory("used"))
    (tmp_path / "meminfo").unlink()
    assert math.isnan(host_memory("total"))
