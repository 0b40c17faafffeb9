"""The parts of the page that are not tables: curves, pictures, settings, software."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice

from monitoring.report import learning, pictures
from monitoring.report.axes import UNKNOWN, figure
from monitoring.report.charts import Chart, Drawing, Line, span
from monitoring.report.curves import Buckets, Curves, Name
from monitoring.report.disclosure import flattened, shown
from monitoring.report.effects import without_effect
from monitoring.report.evaluations import REPEATED
from monitoring.report.markup import pairs, section, text
from monitoring.report.record import Record
from shards.counting import counted

_SETTINGS_BUDGET = 200_000  # characters
_MOST_SETTINGS = 2000


def drawings(record: Record) -> list[Drawing]:
    """Returns every chart of a run, in the order of the page."""
    curves = record.curves
    charts = [_loss_chart(record, name) for name in _losses(curves)]
    for player in dict.fromkeys(name[1] for name in curves.names("accuracy")):
        lines = [Line(_name(name[2]), curves[name]) for name in curves.names("accuracy", player)]
        charts.append(Chart(f"{_title(player)}: accuracy", lines[:4], is_fraction=True))
    norms = curves.names("gradient_norm")
    for first in range(0, len(norms), 4):
        lines = [Line(_name(name[1]) if len(norms) > 1 else "", curves[name]) for name in norms[first : first + 4]]
        charts.append(Chart("Gradient norm", lines, may_be_log=True))
    for kind, title, is_fraction, from_zero in (
        ("rate", "Learning rate, as a fraction of its peak", True, False),
        ("throughput", "Images per second, all ranks", False, True),
        ("utilisation", "Model-FLOP utilisation, all ranks", True, True),
        ("wait", "Fraction of the time waiting for data", True, True),
    ):
        if curves.names(kind):
            charts.append(Chart(title, [Line("", curves[(kind,)])], is_fraction, from_zero=from_zero))
    restarts = [attempt.start for attempt in record.attempts[1:]]
    taken_back = [(max(each.first, int(each.limit) + 1), each.last) for each in record.attempts if each.undone]
    return [Drawing(chart, curves, restarts, taken_back, number) for number, chart in enumerate(charts)]


def _loss_chart(record: Record, name: Name) -> Chart:
    """Returns the chart of a loss. A run with evaluations has held-back losses and baselines in the one that the evaluations repeat."""
    title, line = f"{_title(name[1])}: {_name(name[2])} loss", Line("", record.curves[name])
    if not record.evaluations.rows:
        return Chart(title, [line], may_be_log=True)
    if name != next((each for each in record.curves.names("loss") if each[2] in REPEATED), None):
        return Chart(title, [line], may_be_log=True, skips_start=True)
    lines = [Line("training", record.curves[name]), learning.held_back_line(record)]
    return Chart(title, lines, may_be_log=True, levels=learning.levels(record.evaluations), skips_start=True)


def curves_section(record: Record, drawn: list[Drawing]) -> str:
    """Returns the part with the charts."""
    if not drawn:
        return section("curves", "Curves", '<p class="empty">The history has no steps yet.</p>')
    width = record.curves.width
    lead = "Each point is a step."
    if width > 1:
        lead = f"Each point is the mean of {counted(width, 'step')}; the band goes from their least to their greatest value."
    if any(attempt.undone for attempt in record.attempts):
        lead += " Dotted, on shaded ground: steps that a restart took back, which do not count."
    if len(record.attempts) > 1:
        lead += " Thin vertical lines: restarts."
    if any(bucket.nonfinite for name in record.curves.names() for bucket in record.curves[name].counted.values()):
        lead += " Red marks at the bottom: values that are not finite."
    if record.evaluations.rows:
        lead += " Circles: evaluations on held-back pictures. Dashed lines: baselines."
    hint = "Point at a curve, or reach it with Tab and move with the arrow keys, to read values of the same step everywhere."
    charts = "".join(each.html() for each in drawn)
    return section("curves", "Curves", f'<p class="hint">{hint}</p><div class="charts">{charts}</div>', lead)


def chart_data(record: Record, drawn: list[Drawing]) -> str:
    """Returns the JSON that the page's script reads: numbers alone, no text of a run."""
    first, last = span(record.curves)
    data = {"width": record.curves.width, "first": first, "last": last, "top": record.curves.top, "charts": [each.data() for each in drawn]}
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def pictures_section(record: Record) -> str:
    """Returns the part with the newest picture grid and a few before it."""
    if not record.pictures:
        return section(
            "pictures",
            "Pictures",
            '<p class="empty">No picture grid has been drawn (training.pictures_every; a recipe that names classes draws none).</p>',
        )
    followed = pictures.follow(record.pictures)
    loaded = pictures.load(pictures.chosen(record.pictures))
    figures = []
    for each in loaded:
        if each.problem:
            figures.append(f'<figure class="grid broken"><p>{text(each.problem)}</p><figcaption>step {each.step:,}</figcaption></figure>')
            continue
        figures.append(
            f'<figure class="grid"><button type="button" class="enlarge" aria-label="Enlarge the pictures of step {each.step:,}">'
            f'<img src="{each.url}" width="{each.width}" height="{each.height}" alt="What the networks painted at step {each.step:,}">'
            f"</button><figcaption>step {each.step:,}</figcaption></figure>"
        )
    lead = "The newest first." if len(loaded) > 1 else ""
    if len(record.pictures) > len(loaded):
        lead = f"The newest first, then others back to the first one, of {len(record.pictures):,} in the folder pictures."
    if followed:
        lead = f"Single pictures from the first steps to the newest, then whole grids. {lead}".strip()
    viewer = (
        '<dialog id="viewer" aria-label="Enlarged pictures"><form method="dialog">'
        '<button type="button" class="turn" hidden>Previous</button><button type="button" class="turn" hidden>Next</button>'
        '<output></output><button>Close</button></form><img alt=""></dialog>'
    )
    strip = f'<div class="strip" tabindex="0" role="region" aria-label="Picture grids">{"".join(figures)}</div>'
    strips = "".join(_strip(each, number) for number, each in enumerate(followed, 1))
    return section("pictures", "Pictures", strips + strip + viewer, lead)


def _strip(followed: pictures.Followed, number: int) -> str:
    """Returns one picture through the steps: its context, the paintings, its truth."""
    cells = [(cut, f"painted at step {step:,}", f"step {step:,}") for step, cut in followed.steps.items()]
    if followed.context is not None:
        cells.insert(0, (followed.context, "context", "context"))
    if followed.truth is not None:
        cells.append((followed.truth, "truth", "truth"))
    figures = []
    for cut, what, caption in cells:
        error = f"L1 {figure(cut.l1, 3)} %" if caption.startswith("step") and math.isfinite(cut.l1) else ""
        alt = text(f"Picture {number}, {what}{f', {error}' if error else ''}", 200)
        figures.append(
            f'<figure class="cut"><button type="button" class="enlarge" aria-label="Enlarge: {alt}">'
            f'<img src="{cut.url}" width="{cut.width}" height="{cut.height}" alt="{alt}"></button>'
            f"<figcaption>{caption}<small>{error}</small></figcaption></figure>"
        )
    name = f"Picture {number} through the steps"
    return f'<div class="strip follow" tabindex="0" role="region" aria-label="{name}">{"".join(figures)}</div>'


def settings_section(record: Record) -> str:
    """Returns the part with the settings of the newest attempt, grouped by the first part of their keys."""
    if not record.settings:
        return section("configuration", "Configuration", '<p class="empty">config.yaml is missing or damaged.</p>')
    groups: dict[str, list[tuple[str, str]]] = {}
    used = left_out = 0
    settings = dict(islice(flattened(record.settings), _MOST_SETTINGS))
    idle = without_effect(settings)
    for key, value in settings.items():
        if key in idle:
            continue
        group, _, rest = key.partition(".")
        used += len(text(key)) + len(text(value)) + 30
        if used > _SETTINGS_BUDGET:
            left_out += 1
            continue
        groups.setdefault(group if rest else "run", []).append((text(rest or key), text(value)))
    in_order = sorted(groups.items(), key=_weight)
    blocks = "".join(f'<div class="group"><h3>{text(name, 60)}</h3>{pairs(entries)}</div>' for name, entries in in_order)
    more = f'<p class="hint">{counted(left_out, "more setting is", "more settings are")} in config.yaml.</p>' if left_out else ""
    if idle:
        more += f'<p class="hint">Without effect in this run, and in config.yaml alone: {text(", ".join(sorted(idle)), 2000)}.</p>'
    lead = "Settings of the newest attempt, from config.yaml. Credentials are not shown."
    return section("configuration", "Configuration", f'<div class="groups">{blocks}</div>{more}', lead)


def _weight(group: tuple[str, list[tuple[str, str]]]) -> tuple[int, str]:
    first = ("run", "method", "training", "data", "schedule", "checkpoint", "monitoring", "watchdog")
    return first.index(group[0]) if group[0] in first else len(first), group[0]


def environment_section(record: Record) -> str:
    """Returns the part with the machine and the software of the newest attempt."""
    attempt, saved = record.last, record.checkpoint_facts
    facts = attempt.facts if attempt is not None else {}
    entries = []
    if attempt is not None:
        entries += [("ranks", f"{attempt.world_size:,}" if attempt.world_size else UNKNOWN)]
        entries += [("samples per step", f"{attempt.global_batch:,}" if attempt.global_batch else UNKNOWN)]
    for name, key in (("recipe", "recipe"), ("mode", "mode"), ("decoder", "decoder"), ("device", "device"), ("node of rank 0", "node")):
        if (value := facts.get(key, saved.get(key))) is not None:
            entries.append((name, text(value)))
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        entries += [(text(name, 60), text(value, 80)) for name, value in islice(versions.items(), 40)]
    elif "torch" in saved:
        entries.append(("torch", text(saved["torch"], 80)))
    if not entries:
        return section("environment", "Environment", '<p class="empty">Neither an attempt nor a checkpoint says what it ran with.</p>')
    content = f'<div class="groups"><div class="group wide-group">{pairs(entries)}</div></div>'
    return section("environment", "Environment", content, "Machine and software of the newest attempt.")


def _losses(curves: Curves) -> Iterator[tuple[str, ...]]:
    """Yields the losses to draw. A total that equals one of its parts at every step is drawn once."""
    for name in curves.names("loss"):
        others = [other for other in curves.names("loss", name[1]) if other[2] != "total"]
        if name[2] != "total" or not any(_same(curves[name].counted, curves[other].counted) for other in others):
            yield name


def _same(first: Buckets, second: Buckets) -> bool:
    return first.keys() == second.keys() and all(first[index].total == second[index].total for index in first)


def _title(name: str) -> str:
    """Writes a name at the beginning of a title, with a capital letter."""
    return _name(name[:1].upper() + name[1:])


def _name(name: str) -> str:
    """Writes `context_encoder` as "context encoder", not escaped, because the chart escapes it."""
    return shown(name.replace("_", " "), 60)
