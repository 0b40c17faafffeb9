"""Writes a run as one HTML page that opens in any browser: python launch/report.py RUN [--output FILE]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from monitoring.report import RunPageError, write_run_page
from shards.console import exit_code, megabytes


def main() -> int:
    """Writes the page and prints its path; returns 1 where it can't be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder; the run may go on meanwhile")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the run folder)")
    arguments = parser.parse_args()
    try:
        report = write_run_page(arguments.run, arguments.output)
    except RunPageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in report.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(f"{report.path}: {megabytes(report.bytes)}; open it in any browser")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "The page is as it was"))
