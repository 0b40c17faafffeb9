"""The page: one file with everything in it, which loads nothing and runs no script but its own.

The Content-Security-Policy names the script and the style by their digests, so that text of a run could not run as a script even if it
were not escaped. It allows no address but the data URLs of the pictures.
"""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources

from monitoring.report import learning, sections, summary, tables
from monitoring.report.axes import moment, percent
from monitoring.report.inpainting import inpainting_section
from monitoring.report.markup import text
from monitoring.report.record import Record

LARGEST = 5_000_000
"""Bytes that no page reaches, because every part has a budget."""


def page(record: Record) -> str:
    """Returns the whole page of a run."""
    style, script = _resource("page.css"), _resource("page.js")
    drawn = sections.drawings(record)
    drawn_learning = learning.drawings(record, len(drawn))
    parts = [
        ("learning", "Does it learn", learning.learning_section(record, drawn_learning)),
        ("curves", "Curves", sections.curves_section(record, drawn)),
        ("pictures", "Pictures", sections.pictures_section(record)),
        ("inpainting", "Inpainting", inpainting_section(record.inpainting)),
        ("attempts", "Attempts", tables.attempts_section(record)),
        ("checkpoints", "Checkpoints", tables.checkpoints_section(record)),
        ("configuration", "Configuration", sections.settings_section(record)),
        ("environment", "Environment", sections.environment_section(record)),
        ("bad-samples", "Bad samples", tables.bad_samples_section(record)),
        ("events", "Events", tables.events_section(record)),
    ]
    content = "\n".join(content for _, _, content in parts)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, content in parts if content)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>{text(record.name, 100)} – training report</title>'  # noqa: RUF001
        f'<link rel="icon" href="data:,"><style>{style}</style></head>\n'
        f'<body><a class="skip" href="#curves">Skip to the curves</a>{_header(record)}<nav aria-label="Parts of the report">{links}</nav>\n'
        f"<main>{_summary(record)}\n{content}</main>\n"
        f"<footer>Read from the run folder at {moment(record.read_at)} UTC. "
        "<code>python launch/report.py RUN</code> writes it anew.</footer>\n"
        f'<script type="application/json" id="chart-data">{sections.chart_data(record, [*drawn, *drawn_learning])}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _header(record: Record) -> str:
    found = summary.state(record)
    recipe = record.last.facts.get("recipe") if record.last else None
    recipe = recipe or record.settings.get("recipe")
    about = [f"recipe {text(recipe, 60)}"] if recipe else []
    begun = record.attempts[0].begun if record.attempts else math.nan
    if math.isfinite(begun):
        about.append(f"begun {moment(begun)} UTC")
    done = summary.progress(record)
    bar = ""
    if done < 1:  # false for NaN
        bar = (
            f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{100 * done:.0f}" '
            f'aria-label="Steps done"><svg width="100%" height="6" aria-hidden="true"><rect width="100%" height="6" rx="3"/>'
            f'<rect class="done" width="{done:.2%}" height="6" rx="3"/></svg><span>{percent(done)}</span></div>'
        )
    return (
        f'<header><p class="eyebrow">Training report</p><div class="title"><h1>{text(record.name, 100)}</h1>'
        f'<span class="state {found.mood}">{found.word}</span></div><p class="about">{" · ".join(about)}</p>'
        f'<p class="sentence">{found.sentence}</p>{bar}</header>'
    )


def _summary(record: Record) -> str:
    tiles = "".join(
        f'<div class="tile"><dt>{name}</dt><dd><b>{value}</b><span>{beside}</span></dd></div>'
        for name, value, beside in summary.tiles(record)
    )
    notes = "".join(f'<li><span class="dot {mood}"></span><span>{sentence}</span></li>' for mood, sentence in summary.notes(record))
    listed = f'<section id="notes" aria-label="What to look at"><ul class="notes">{notes}</ul></section>' if notes else ""
    return f'<dl class="tiles">{tiles}</dl>{listed}'


def _resource(name: str) -> str:
    return resources.files("monitoring.report").joinpath(name).read_text(encoding="utf-8").strip()


def _digest(content: str) -> str:
    """Returns the name of an inline script or style in a policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
