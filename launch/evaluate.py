"""Judges a trained encoder: python launch/evaluate.py probe RUN_OR_ENCODER --labelled URL (docs/probe.md), and what a run paints into
holes: python launch/evaluate.py inpainting RUN [--data.shards URL] (docs/inpainting.md), also by accelerate launch"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from monitoring.run_files import INPAINTING, json_text
from shards.build.sources import open_source
from shards.build.sources.reading import read_pictures
from shards.console import exit_code, printable
from shards.dataset.manifest import NAME
from shards.errors import ExplainedError
from shards.store import Options, Store
from shards.urls import parse_options, redacted

if TYPE_CHECKING:
    from pipeline.evaluation.probe.pictures import LabelledPictures

_LONGEST_PICTURE = 1 << 30  # bytes
_SECONDS_BETWEEN_LINES = 10.0


class SourcePictures:
    """The pictures of a folder or a tar, read in place.

    Args:
        url: URL of the source, as `python -m shards build` takes it.
        options: options of its store, as in fsspec.
        include: patterns of names, as --include.
        label_pattern: regular expression whose group is the label; None takes the first folder.
        split: split to take, as --split.

    Raises:
        SourceError: there are no pictures, a name gives no label, or splits would be mixed unasked.
    """

    def __init__(self, url: str, options: Options, include: Sequence[str], label_pattern: str | None, split: str | None = None) -> None:
        self.name = redacted(url)
        self._options = options
        self._listing = open_source(url, options, include, "folder", label_pattern, split, needs_labels=True)
        self.classes = self._listing.classes
        self.labels = self._listing.label.astype(np.int64)

    def read(self, numbers: Sequence[int]) -> Iterator[bytes | None]:
        """Reads pictures in the order given; None for one that is too long to be one, or a link that leads nowhere."""
        entries = [self._listing[number] for number in numbers]
        for _, data in read_pictures(self._listing.url, self._options, entries, _LONGEST_PICTURE):
            yield data if isinstance(data, bytes) else None


class Progress:
    """Shows a line on stderr every ten seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __call__(self, line: str) -> None:
        """Shows the line, if it is time for one."""
        if time.monotonic() >= self._next:
            print(line, file=sys.stderr, flush=True)
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 1 for an error that it explains, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python launch/evaluate.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_probe(commands)
    text = "compare what a run paints into holes with other fills: errors with intervals, as a table, CSV, JSON and a picture grid"
    commands.add_parser("inpainting", help=text, add_help=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["inpainting"]:  # whose settings are read as those of the training
        return exit_code(lambda: _run(argparse.Namespace(run=lambda _: _inpainting(given[1:]))), "The same command continues")
    options = parser.parse_args(given)
    return exit_code(lambda: _run(options), "Nothing was written")


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except BrokenPipeError:
        raise
    except (ExplainedError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        print(f"error: {error.name} is not installed: pip install -e '.[evaluate]'", file=sys.stderr)
        return 1


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "judge the frozen features of every layer by ridge, logistic regression and nearest neighbours, beside a random start"
    parser = commands.add_parser("probe", help=text, description=text)
    parser.add_argument("encoder", metavar="RUN_OR_ENCODER", help="a run folder, its checkpoints, or an exported file or folder")
    parser.add_argument(
        "--labelled", required=True, metavar="URL", help="pictures: a folder of one folder a class, a tar of it, or a data set of shards"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file for all figures")
    parser.add_argument("--step", type=int, help="step of a run's checkpoint (default: the newest that verifies)")
    parser.add_argument("--layers", nargs="+", default=[], metavar="LAYER", help="layers to probe (default: every rectifier and pooling)")
    parser.add_argument(
        "--classifiers", nargs="+", choices=["ridge", "logistic", "neighbours"], default=["ridge", "logistic", "neighbours"], metavar="NAME"
    )
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation (default: 5)")
    parser.add_argument(
        "--knn", type=int, nargs="+", default=[1, 5, 20, 100], metavar="K", help="numbers of neighbours (default: 1 5 20 100)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="most pictures of a class (default: all)")
    parser.add_argument(
        "--random-starts", type=int, default=1, metavar="N", help="random starts, each of which is to be beaten (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds and of every draw (default: 0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="folder for the features while the probe runs (default: $TMPDIR)")
    parser.add_argument("--include", action="append", default=[], metavar="GLOB", help="of a folder or tar, take only names that match")
    parser.add_argument("--label-pattern", metavar="REGEX", help="of a folder or tar, pattern with one group, which is the label")
    parser.add_argument("--split", metavar="NAME", help="of a folder or tar, split to take: train, val, test, ...; all mixes every split")
    parser.add_argument(
        "--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the stores of both, as in fsspec; repeatable"
    )
    parser.set_defaults(run=_probe)


def _inpainting(arguments: Sequence[str]) -> int:
    """Does this rank's share of a table; returns 130 where a signal ended the work before the table was whole."""
    from pipeline.training.supervision.interruption import Interruption  # noqa: PLC0415

    with Interruption() as interruption:  # before the imports below take their seconds
        from pipeline.evaluation.inpainting.settings import parse  # noqa: PLC0415
        from pipeline.evaluation.inpainting.work import evaluate  # noqa: PLC0415
        from pipeline.evaluation.rank import Rank  # noqa: PLC0415

        rank, config = Rank.of_environment(os.environ), parse(arguments)
        outcome = evaluate(config, rank, interruption)
        if rank.number == 0 or not outcome.finished:
            print(printable_lines(outcome.text), flush=True)
    if rank.number == 0 and outcome.finished and (line := _page(config.run, config.out)):
        print(printable(line), flush=True)
    return 0 if outcome.finished else 130


def _page(run: str, out: str) -> str:
    """Writes the page of a run anew, which shows its newest table; returns the line about the page, empty where a run has none.

    Args:
        run: run folder, or the URL of its checkpoints.
        out: folder of the table; empty is in the run folder. The page shows no table that lies elsewhere.
    """
    from monitoring.report import has_record, page_of_finished_run  # noqa: PLC0415

    if "://" in run or not has_record(folder := Path(run)):
        return ""
    if out and Path(out).resolve().parent != (folder / INPAINTING).resolve():
        return f"no report was written: the page of the run shows tables in {folder / INPAINTING} alone"
    return page_of_finished_run(folder)


def _probe(options: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415 - --help needs none of these

    from pipeline.evaluation.encoder import read_encoder  # noqa: PLC0415
    from pipeline.evaluation.export import check_target  # noqa: PLC0415
    from pipeline.evaluation.probe.probe import ProbeSettings, probe  # noqa: PLC0415
    from pipeline.evaluation.probe.report import as_mapping, as_text  # noqa: PLC0415
    from shards.local_files import whole_file  # noqa: PLC0415

    if options.out is not None:
        check_target(options.out, "the figures")
    settings = ProbeSettings(
        tuple(options.layers),
        tuple(dict.fromkeys(options.classifiers)),
        options.folds,
        tuple(options.knn),
        options.limit,
        options.random_starts,
        options.seed,
        options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        options.scratch,
    )
    storage = parse_options(options.storage)
    encoder = read_encoder(options.encoder, storage, options.step)
    pictures = _labelled(options.labelled, storage, options.include, options.label_pattern, options.split)
    found = as_mapping(probe(encoder, pictures, settings, Progress()))
    print(printable_lines(as_text(found, redacted(options.encoder), pictures.name)))
    if options.out is not None:
        named = {"encoder_path": redacted(options.encoder), "labelled": pictures.name, **found}
        with whole_file(options.out.resolve(), durable=False) as file:
            file.write((json_text(named, indent=1) + "\n").encode())
        print(f"all figures: {options.out}")
    return 0


def printable_lines(text: str) -> str:
    """The same lines, safe for any terminal, because names of classes are names of folders."""
    return "\n".join(map(printable, text.split("\n")))


def _labelled(url: str, storage: Options, include: Sequence[str], label_pattern: str | None, split: str | None) -> LabelledPictures:
    """A data set of shards where there is a manifest, otherwise the pictures of a folder or a tar."""
    from pipeline.evaluation.probe.pictures import DatasetPictures, ProbeError  # noqa: PLC0415

    if url.endswith(".json") or Store(url, storage).size(NAME) is not None:
        if include or label_pattern is not None or split is not None:
            raise ProbeError(f"{redacted(url)}: is a data set with labels of its own: leave out --include, --label-pattern and --split")
        return DatasetPictures(url, storage)
    pictures = SourcePictures(url, storage, include, label_pattern, split)
    if not pictures.classes:
        raise ProbeError(
            f"{pictures.name}: its pictures have no labels. Name a folder of one folder a class, or say with --label-pattern which part of "
            "a name is the class; for tars of WebDataset make a data set first: python -m shards index"
        )
    return pictures


if __name__ == "__main__":
    sys.exit(main())
