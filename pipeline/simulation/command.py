"""The simulator's command line: options in, a table or JSON out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from pipeline.simulation.prediction import simulate
from pipeline.simulation.probe import measure
from pipeline.simulation.report import as_mapping, as_text
from pipeline.simulation.settings import Setup, SimulationError, Subject, made_up, option, stored

_EXAMPLES = """examples:
  a data set that exists, with the latency and the bandwidth that its bucket gives this machine:
    python launch/simulate.py s3://bucket/imagenet-256 --measure --nodes 8 --global-batch 2048
  one that does not exist yet:
    python launch/simulate.py --samples 1e9 --shard-samples 10000 --sample-bytes 30000 --nodes 64 --global-batch 16384 --cache-gb 50
"""


_MEASURED = ("latency", "bandwidth", "connection_bandwidth")


def run(arguments: Sequence[str], storage: Callable[[Sequence[str]], Mapping[str, str]]) -> int:
    """Predicts a run and prints what it found.

    Args:
        arguments: arguments of the command line.
        storage: function that reads the KEY=VALUE pairs of --storage.

    Returns:
        The exit code.

    Raises:
        ShardError: an option is out of range, or the data set can't be read.
    """
    options = _parser().parse_args(arguments)
    given = {field.name: value for field in dataclasses.fields(Setup) if (value := getattr(options, field.name)) is not None}
    setup = Setup(**given)
    known = storage(options.storage)
    subject = _subject(options, known)
    measured, kept = None, [name for name in _MEASURED if options.measure and name in given]
    if options.measure:
        if subject.local:
            raise SimulationError(f"--measure reads a bucket: {subject.name} lies on this machine and is read in place, leave it out")
        measured = measure(subject.manifest, known, setup.connections)
        setup = dataclasses.replace(setup, **{name: getattr(measured, name) for name in _MEASURED if name not in kept})
    found = simulate(subject, setup)
    print(json.dumps(as_mapping(found, measured, kept), indent=1) if options.json else as_text(found, measured, kept))
    return 0


def _subject(options: argparse.Namespace, storage: Mapping[str, str]) -> Subject:
    figures = {name: getattr(options, name) for name in ("samples", "shard_samples", "sample_bytes")}
    missing = [option(name) for name, value in figures.items() if value is None]
    if options.url is not None:
        if len(missing) < len(figures):
            raise SimulationError(
                f"{options.url} says what the data set is: leave out {', '.join(set(map(option, figures)) - set(missing))}"
            )
        return stored(options.url, storage)
    if missing:
        raise SimulationError(f"give the URL of a data set, or {' and '.join(missing)}{' as well' if len(missing) < len(figures) else ''}")
    if options.measure:
        raise SimulationError("--measure reads a bucket: give the URL of a data set instead of --samples")
    return made_up(**figures)


def _number(text: str) -> float:
    """Reads a number: integers to their last digit, `1e9` as an integer, other numbers as they are. `Setup` checks which it needs."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    return int(value) if value.is_integer() else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/simulate.py",
        description="predict what a run asks of its store, the cache it needs and how long its GPUs wait",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="the folder of a data set, or its manifest.json")
    parser.add_argument("--samples", type=_number, metavar="N", help="samples of a data set that does not exist yet; may be written as 1e9")
    parser.add_argument("--shard-samples", type=_number, metavar="N", help="samples of one of its shards")
    parser.add_argument("--sample-bytes", type=_number, metavar="BYTES", help="mean bytes of one of its pictures")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="take latency and bandwidth, where they are not given, from the data set's bucket: some seconds, 256 MB at most",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--storage", action="append", default=[], metavar="KEY=VALUE", help="fsspec option of the store, as for build; repeatable"
    )
    for field in dataclasses.fields(Setup):
        kind = _number if isinstance(field.default, int) else float
        text = f"{field.metadata['help']} (default: {field.default:g})".replace("%", "%%")
        parser.add_argument(option(field.name), type=kind, metavar=field.metadata["unit"], help=text)
    return parser
