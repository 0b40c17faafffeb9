"""Small pieces of HTML. What comes from a run goes through `text`, and nothing else makes it part of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from monitoring.report.disclosure import shown


def text(value: object, longest: int = 300) -> str:
    """Anything that a run says, safe inside an element or a quoted attribute: without secrets, and escaped."""
    return escape(shown(value, longest), quote=True)


def table(head: Sequence[str], rows: Iterable[str], name: str, kind: str = "") -> str:
    """A table with a row of headings, which scrolls sideways on a small screen.

    Args:
        head: names of the columns; one that begins with `>` stands to the right, as numbers do.
        rows: `<tr>` elements.
        name: of the table, for those who can't see where it stands.
        kind: class of the table.
    """
    headings = "".join(
        f'<th scope="col" class="number">{escape(each[1:])}</th>' if each.startswith(">") else f'<th scope="col">{escape(each)}</th>'
        for each in head
    )
    kind = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">'
        f'<table{kind}><caption class="unseen">{escape(name)}</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(first: str, *cells: str, kind: str = "") -> str:
    """A row whose first cell names it.

    Args:
        first: markup of the first cell.
        cells: markup of the others; one that begins with `<td` is a cell already.
        kind: class of the row.
    """
    kind = f' class="{kind}"' if kind else ""
    others = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr{kind}><th scope="row">{first}</th>{others}</tr>'


def figure_cell(content: str) -> str:
    """A cell with a number, which stands to the right."""
    return f'<td class="number">{content}</td>'


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """Names and values, as markup."""
    return f"<dl class='pairs'>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in entries)}</dl>"


def counted_as(count: int, one: str, several: str) -> str:
    """1 step, 1,200 steps."""
    return f"{count:,} {one if count == 1 else several}"


def section(name: str, title: str, content: str, lead: str = "") -> str:
    """A part of the page; `name` is where the navigation leads."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{lead}{content}</section>'


def within(budget: int, rows: Iterable[str]) -> tuple[list[str], int]:
    """As many rows from the beginning as fit into so many characters, and how many that left out."""
    kept, left_out, used = list[str](), 0, 0
    for each in rows:
        used += len(each)
        if used <= budget:
            kept.append(each)
        else:
            left_out += 1
    return kept, left_out
