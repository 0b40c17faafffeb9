"""The page of a run, for those without Grafana: the files of a run folder in, one HTML file that opens in any browser out.

    lines          JSON lines as a stream, whatever a crash or another program left in them
    attempts       the steps of each attempt, and which of them count
    curves         any number of steps in a few hundred buckets, with the least and the greatest value of each
    history        the history of a run as curves
    evaluations    evaluations on held-back pictures, of which those of steps that count are kept
    record         everything that a run folder holds, read once
    pictures       the newest grid and a few before it, and single pictures followed through many grids, as small JPEGs
    inpainting     the newest table of errors beside other methods' fills, and its grid
    disclosure     text from a run made fit to be shown: no secrets, no control characters
    effects        settings that have no effect beside others
    axes, charts   round numbers for axes, and curves as inline SVG
    learning       the part of the page that says whether the run learns
    summary        the top of the page: state, figures and notes
    sections, tables, page   the other parts of the page, and the page itself
    writing        the functions that `launch/report.py` and the end of a run call

Public names: `write_run_page`, `page_of_finished_run`, `missing_page`, `has_record`, `RunPage` and `RunPageError`.

The pipeline is not imported: both sides share only the files of the run folder. Nothing that a run wrote is trusted. It may be damaged,
huge or hostile, and the page is still complete, below 5 MB, and runs no script but its own.
"""

from monitoring.report.writing import RunPage, RunPageError, has_record, missing_page, page_of_finished_run, write_run_page

__all__ = ["RunPage", "RunPageError", "has_record", "missing_page", "page_of_finished_run", "write_run_page"]
