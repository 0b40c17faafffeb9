"""Weak and strong scaling on the ranks of this machine, and the model of larger ones with the constants that were measured.

python -m benchmarks.scaling [--config FILE ...] [--ranks 2 ...] [--rounds 5] [--gpu-teraflops 989.4 ...] [--SECTION.SETTING VALUE ...]

Ranks are started by `accelerate launch`, as a run's are. Prints the tables of docs/scaling.md, which explains them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import scaling_tables as tables
from benchmarks.end_to_end import CONFIGS, ROOT, STORED, Sides
from benchmarks.machine import measured_here
from benchmarks.scaling_model import Bucket, Cluster, Turn, Work
from benchmarks.streaming import build
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.training.reporting.flops import PEAK_TERAFLOPS
from shards.dataset import manifest as manifests

_ON_CPUS = 16  # pictures of a rank where there is no GPU
_COUNTED = 4  # pictures of a rank where collectives are counted, whose number and sizes do not depend on it


@dataclass(frozen=True)
class Measured:
    """One configuration, as it was measured here.

    Attributes:
        config: settings at the published sizes.
        unit: pictures that ranks can't divide, at the published sizes.
        runs: results of benchmarks/scaling_rank.py, by number of ranks.
        counted: results of benchmarks/scaling_rank.py that counts collectives on two processors, by training mode.
        picture_bytes: bytes of a stored picture.
        core_rate: pictures a second that one core reads and decodes.
    """

    config: Config[Any]
    unit: int
    runs: dict[int, dict[str, Any]]
    counted: dict[str, dict[str, Any]]
    picture_bytes: float
    core_rate: float

    @property
    def largest(self) -> dict[str, Any]:
        """The result on most ranks."""
        return self.runs[max(self.runs)]


def fit(found: dict[str, Any], kind: str = "one") -> tuple[float, float]:
    """Returns the seconds of a step beside its pictures and for each picture, from steps of two sizes.

    Args:
        found: result of benchmarks/scaling_rank.py.
        kind: kind of step whose time at the first size counts.
    """
    one, other = median(found["seconds"][kind]), median(found["seconds"]["one, other"]) * _slowed(found, kind)
    batch, few = found["batch"], found["other"]
    picture = (one - other) / (batch - few)
    picture = min(picture, one / batch) if picture > 0 else one / batch  # noise can't make the rest of a step negative
    return one - batch * picture, picture


def _slowed(found: dict[str, Any], kind: str) -> float:
    return float(median(found["seconds"][kind]) / median(found["seconds"]["one"]))


def work_of(counted: dict[str, Any], fixed: float, picture: float) -> Work:
    """Returns a step with the buckets and small sums that were counted.

    Args:
        counted: result of benchmarks/scaling_rank.py on several ranks.
        fixed: seconds of a step beside its pictures.
        picture: seconds for each picture.
    """
    turns = tuple(Turn(turn["backward"], tuple(Bucket(size, ready) for size, ready in turn["buckets"])) for turn in counted["turns"])
    small = tuple(size for _, size, beside in counted["calls"] if not beside)
    return Work(fixed, picture, turns, small, sum(beside for *_, beside in counted["calls"]))


def links_here(found: dict[str, Any]) -> Cluster:
    """Returns this machine as a cluster of one node, with the links that were measured."""
    latency, bandwidth = found["device_latency"], found["device_bandwidth"]
    return Cluster(bandwidth, bandwidth, latency, found["host_latency"], found["ranks"])


def _small(path: str, batch: int, more: Sequence[str]) -> list[str]:
    """The settings of a small step in fp32, with batch-norm groups that divide it."""
    settings = ["--config", path]
    usual = parse(recipes.SETTINGS, [*settings, "--data.shards", "none"])
    if getattr(usual.method, "unit", 1) > 1:
        settings += ["--method.batch_norm_group", str(batch // 2)]
    return [*settings, "--training.precision", "fp32", "--training.global_batch", str(batch), "--training.micro_batch", str(batch), *more]


def _start(ranks: int, settings: Sequence[str], output: Path, rounds: int, steps: int, cpu: bool) -> Any:
    """Measures on so many ranks, and returns the result.

    Args:
        ranks: ranks to start.
        settings: settings of the run.
        output: file for the result.
        rounds: measurements of each kind of step; 0 counts collectives alone.
        steps: steps of a measurement.
        cpu: whether the ranks compute on processors.
    """
    script = [str(ROOT / "benchmarks" / "scaling_rank.py"), "--output", str(output), "--rounds", str(rounds), "--steps", str(steps)]
    where = ROOT / "launch" / "accelerate" / ("cpu.yaml" if cpu else "node.yaml")
    launcher = ["-m", "launch", "--config_file", str(where), "--num_processes", str(ranks)] if ranks > 1 else []
    done = subprocess.run([sys.executable, *launcher, *script, *settings], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks of {settings[1]} failed:\n{done.stderr}")
    return json.loads(output.read_text(encoding="utf-8"))


def _measured(path: str, options: argparse.Namespace, more: Sequence[str], scratch: Path) -> Measured:
    published = parse(recipes.SETTINGS, ["--config", path, "--data.shards", "none", *more])
    cpu, output = not torch.cuda.is_available(), scratch / "found.json"
    settings = _small(path, _ON_CPUS, more) if cpu else ["--config", path, *more]
    runs = {}
    for ranks in options.ranks:
        print(f"{path}, {ranks} ranks ...", file=sys.stderr, flush=True)
        runs[ranks] = _start(ranks, settings, output, options.rounds, options.steps, cpu)
    counted = {}
    for mode in ("ddp", "zero1", "zero2", "zero3") if importlib.util.find_spec("deepspeed") else ("ddp",):
        print(f"{path}, collectives of {mode} ...", file=sys.stderr, flush=True)
        counted[mode] = _start(2, [*_small(path, _COUNTED, more), "--training.mode", mode], output, 0, 1, cpu=True)
    side = STORED.get(published.recipe, "256")
    shards = build(options.pictures, scratch, f"{published.recipe} stored at {side}", side)
    manifest = manifests.load(str(shards))
    size = sum(record.size for record in manifest.records) / manifest.total_samples
    small = parse(recipes.SETTINGS, [*_small(path, _ON_CPUS, more), "--data.shards", str(shards), "--data.threads", "1"])
    speed = Sides(small, scratch, seconds=4.0, steps=1).loader()
    return Measured(published, getattr(published.method, "unit", 1), runs, counted, size, speed.rate / speed.cores)


def modelled(measured: Measured, options: argparse.Namespace) -> Work:
    """Returns a step of the published sizes on a GPU: measured where there is one, else from its operations and the options."""
    found = measured.largest
    if torch.cuda.is_available() and options.utilisation is None and options.fixed_ms is None:
        fixed, picture = fit(found)
    else:
        fixed = (options.fixed_ms if options.fixed_ms is not None else FIXED_MS) / 1000
        picture = found["flops"] / ((options.utilisation or UTILISATION) * options.gpu_teraflops * 1e12)
    return work_of(found if "turns" in found else measured.counted["ddp"], fixed, picture)


UTILISATION, FIXED_MS = 0.45, 1.0
"""Assumed where there is no GPU: share of the peak that the computation reaches, and milliseconds of a step beside its pictures."""


def _arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = torch.cuda.device_count() or 2
    counts = [ranks for ranks in (2, 4, 8, 16) if ranks <= here] or [1]
    default = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data")) / "imagenet_sample"
    parser.add_argument("--config", nargs="+", default=CONFIGS, metavar="FILE", help="configurations (default: both recipes of the paper)")
    parser.add_argument("--pictures", type=Path, default=default, help="folder of photographs (default: imagenet_sample)")
    parser.add_argument("--ranks", type=int, nargs="+", default=counts, help="ranks to measure on (default: 2, 4, ... GPUs, or 2 on CPUs)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind of step (default: 5)")
    parser.add_argument("--steps", type=int, default=20 if torch.cuda.is_available() else 2, help="steps of a measurement")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 1024], help="GPUs of the model (default: 1 8 64 1024)")
    assumed = parser.add_argument_group("constants of the model; the defaults are the maker's figures of an H200 in a node of eight")
    peak = PEAK_TERAFLOPS["H200"][0]
    assumed.add_argument("--gpu-teraflops", type=float, default=peak, help=f"peak of a GPU in 10^12 operations a second (default: {peak})")
    assumed.add_argument("--utilisation", type=float, help=f"share of the peak reached (default: measured on a GPU, else {UTILISATION})")
    assumed.add_argument("--fixed-ms", type=float, help=f"ms of a step beside its pictures (default: measured on a GPU, else {FIXED_MS})")
    assumed.add_argument("--node-bandwidth", type=float, default=450.0, help="GB/s from GPU to GPU in a node (default: 450, NVLink 4)")
    assumed.add_argument("--network-bandwidth", type=float, default=400.0, help="GB/s out of a node (default: 400, 8 links of 400 Gb/s)")
    assumed.add_argument("--latency-us", type=float, default=5.0, help="us of a hop between GPUs (default: 5)")
    assumed.add_argument("--host-latency-us", type=float, default=30.0, help="us of a hop between processors over TCP (default: 30)")
    assumed.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of a node (default: 8)")
    assumed.add_argument("--cores-per-gpu", type=int, default=16, help="cores that decode for each GPU (default: 16)")
    assumed.add_argument("--data-set", type=int, help="pictures of the data set (default: the paper's)")
    assumed.add_argument("--cache-gb", type=float, default=20.0, help="data.cache_gb, the cache of a node (default: 20)")
    assumed.add_argument("--price", type=float, default=3.0, help="price of a GPU hour (default: 3)")
    parser.add_argument("--output", type=Path, help="file for the tables, beside standard output")
    options, more = parser.parse_known_args(arguments)
    if not options.pictures.is_dir():
        parser.error(f"no photographs in {options.pictures}: name a folder of them with --pictures")
    return options, more


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the tables."""
    options, more = _arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = [_measured(path, options, more, Path(folder)) for path in options.config]
    cluster = Cluster(
        options.node_bandwidth * 1e9,
        options.network_bandwidth * 1e9,
        options.latency_us / 1e6,
        options.host_latency_us / 1e6,
        options.gpus_per_node,
    )
    works = [modelled(each, options) for each in found]
    lines = [f"{measured_here()}; torch {torch.__version__}, {options.rounds} rounds", ""]
    for each, work in zip(found, works, strict=True):
        lines += tables.constants(each, work)
    lines += ["", *tables.VOLUMES]
    for each in found:
        lines += tables.volumes(each)
    lines += ["", *tables.HERE]
    for each in found:
        for ranks, run in each.runs.items():
            if ranks > 1:
                lines += tables.here(each.config.recipe, run, work_of(run, *fit(run, "apart")), links_here(run))
    lines += ["", *tables.EFFICIENCY]
    for each, work in zip(found, works, strict=True):
        lines += tables.efficiency(each, work, cluster, options.gpus)
    lines += ["", *tables.NEEDS]
    for each, work in zip(found, works, strict=True):
        lines += tables.needs(each, work, cluster, options)
    text = "\n".join([*lines, ""])
    print(f"\n{text}")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
