"""Small pieces of HTML. Everything that comes from a run goes through `text` before it becomes part of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from monitoring.report.disclosure import shown


def text(value: object, longest: int = 300) -> str:
    """Makes a value from a run safe inside an element or a quoted attribute: without secrets, and escaped."""
    return escape(shown(value, longest), quote=True)


def table(head: Sequence[str], rows: Iterable[str], name: str, kind: str = "") -> str:
    """Returns a table with a row of headings, which scrolls sideways on a small screen.

    Args:
        head: names of the columns; a name that begins with `>` is aligned to the right, like the numbers below it.
        rows: `<tr>` elements.
        name: name of the table, for readers with a screen reader.
        kind: CSS class of the table.
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
    """Returns a row whose first cell names it.

    Args:
        first: markup inside the first cell.
        cells: markup inside the other cells, or whole cells that begin with `<td`.
        kind: CSS class of the row.
    """
    kind = f' class="{kind}"' if kind else ""
    others = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr{kind}><th scope="row">{first}</th>{others}</tr>'


def figure_cell(content: str) -> str:
    """Returns a cell with a number, aligned to the right."""
    return f'<td class="number">{content}</td>'


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """Returns a list of names and values, both given as markup."""
    return f"<dl class='pairs'>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in entries)}</dl>"


def section(name: str, title: str, content: str, lead: str = "") -> str:
    """Returns a part of the page; `name` is its anchor in the navigation."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{lead}{content}</section>'


def within(budget: int, rows: Iterable[str]) -> tuple[list[str], int]:
    """Returns as many of the first rows as fit into `budget` characters, and the number of rows left out."""
    kept, left_out, used = list[str](), 0, 0
    for each in rows:
        used += len(each)
        if used <= budget:
            kept.append(each)
        else:
            left_out += 1
    return kept, left_out
