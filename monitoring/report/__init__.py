"""A run as one HTML page, for those without Grafana: the files of a run folder in, one file that opens in any browser out.

    lines          JSON lines as a stream, whatever a crash or another program left in them
    attempts       who trained which steps, and which of them count
    curves         any number of steps in a few hundred buckets, with the least and the greatest of each
    history        the steps as curves
    record         everything that a run folder says, read once
    pictures       the newest grid and a few before it, small enough
    disclosure     text from a run as it may be shown: no secrets, no control characters
    axes, charts   nice numbers, and curves as inline SVG
    summary        what a reader sees first
    sections, tables, page   the other parts of the page, and the page
    writing        what `launch/report.py` and the end of a run call

Nothing here knows the pipeline: the run folder's files are what both sides share. Nothing that a run wrote is trusted: it may be
damaged, huge or hostile, and the page is still whole, below 5 MB, and runs no script but its own.
"""

from monitoring.report.writing import Report, ReportError, report_of_finished, write_report

__all__ = ["Report", "ReportError", "report_of_finished", "write_report"]
