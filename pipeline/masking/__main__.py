"""`python -m pipeline.masking BANK FILE.png`: draws a sheet of 64 masks with their statistics, which it also prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.mapping import ConfigError, from_mapping
from pipeline.masking import MaskConfig, bank_of, mask_source
from pipeline.masking.sheet import draw_sheet
from pipeline.masking.statistics import measure
from shards.counting import counted
from shards.errors import ExplainedError
from shards.shapes.sheet_file import check_sheet
from shards.urls import parse_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a sheet and returns the exit code: 0 done, 1 an error, 2 a wrong command line, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.masking", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("bank", metavar="BANK", help="URL of a bank of shapes made by `python -m shards shapes`; '' for generated shapes")
    parser.add_argument("file", metavar="FILE.png", type=Path, help="PNG to write")
    parser.add_argument("--kind", default="region", help="kind of masks, as method.mask.kind: region, block, central, noise_pattern")
    parser.add_argument("--size", type=_positive, default=227, help="side of the masks in pixels")
    parser.add_argument("--draws", type=_positive, default=10_000, help="masks that are measured")
    parser.add_argument("--min-fraction", type=float, help="smallest fraction of the pixels that a mask drops; default: of the kind")
    parser.add_argument("--max-fraction", type=float, help="largest fraction of the pixels that a mask drops; default: of the kind")
    parser.add_argument("--mean-fraction", type=float, help="mean fraction of the pixels that masks drop, region only")
    parser.add_argument(
        "--storage", action="append", default=[], metavar="KEY=VALUE", help="fsspec option of the bank's store; may be given again"
    )
    options = parser.parse_args(arguments)
    try:
        check_sheet(str(options.file), options.bank)
        return _draw(options)
    except (ExplainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted. Nothing was written", file=sys.stderr)
        return 130


def _draw(options: argparse.Namespace) -> int:
    config: MaskConfig = from_mapping(MaskConfig, _settings(options))
    source = mask_source(config)
    if (bank := bank_of(source)) is not None:
        bank.options = parse_options(options.storage)
    try:
        statistics = measure(source, options.size, options.draws)
        shapes = "generated shapes" if bank is None else f"{counted(len(bank.content.silhouettes), 'shape')} of {bank.content.origin}"
        lines = [f"{config.kind}{f', {shapes}' if config.kind == 'region' else ''}", *statistics.lines()]
        draw_sheet(options.file, source, options.size, lines)
    except ValueError as error:  # sizes and limits that no mask keeps
        raise ConfigError(str(error)) from error
    print("\n".join([*lines, f"wrote {options.file}"]))
    return 0


def _settings(options: argparse.Namespace) -> dict[str, object]:
    """The settings of masks that the command line names; the others keep their defaults."""
    if options.bank and options.kind != "region":
        raise ConfigError(f"BANK: masks of the kind {options.kind!r} take no shapes. Give '' for BANK, or leave --kind out")
    noise = options.kind == "noise_pattern"
    given: dict[str, object] = {"kind": options.kind, "shapes": options.bank, "mean_fraction": options.mean_fraction}
    least, most = options.min_fraction, options.max_fraction
    if noise:
        first, second = MaskConfig.noise_fractions
        given["noise_fractions"] = (first if least is None else least, second if most is None else most)
    else:
        given |= {name: value for name, value in (("min_fraction", least), ("max_fraction", most)) if value is not None}
    return given


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
