"""How results are shown: one look for every figure, tables, a page that needs no network."""

from __future__ import annotations

import csv
import html
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the font lacks is drawn as a box; that need not be said for every letter.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")

Table = tuple[list[str], list[list[str]]]  # head, rows
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "savefig.dpi": 150,
    "svg.hashsalt": "seqzoo",  # the same figure is the same file
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
        color: #1b1f24; background: #fff }}
 table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
          display: block; overflow-x: auto; white-space: nowrap }}
 td, th {{ padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }}
 td:first-child, th:first-child {{ text-align: left }}
 th {{ cursor: pointer }}
 svg {{ max-width: 100%; height: auto }}
 pre {{ background: #f4f4f4; padding: .7rem; overflow-x: auto }}
</style></head><body>
<h1>{title}</h1>
{body}
<script>
 // A click on a column's head sorts by it; a second click the other way round.
 for (const head of document.querySelectorAll("th")) head.onclick = () => {{
   const body = head.closest("table").tBodies[0], column = head.cellIndex;
   const down = head.dataset.down = head.dataset.down ? "" : "1";
   const key = row => {{
     const text = row.cells[column].textContent.replaceAll(",", "");
     return isNaN(parseFloat(text)) ? text : parseFloat(text);
   }};
   [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : -1) * (down ? -1 : 1))
     .forEach(row => body.append(row));
 }};
</script></body></html>
"""


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure made inside, or by the function it decorates."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour a name; a family of the zoo has the same one in every figure."""
    import matplotlib

    from seqzoo.models.zoo import FAMILIES

    tab20 = matplotlib.color_sequences["tab20"]
    palette = [*tab20[::2], *tab20[1::2]]  # ten strong ones, then the same ten pale
    fixed = {name: palette[i] for i, name in enumerate(FAMILIES) if name in names}
    free = [colour for colour in palette if colour not in fixed.values()]
    others = [name for name in names if name not in fixed]
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` axes in rows of at most `columns`."""
    columns = min(columns, count)
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return axes[:count]


def legend_below(figure: Figure, columns: int) -> None:
    """One legend of all axes' curves for the whole figure, in at most so many columns."""
    curves: dict[str, Any] = {}
    for axes in figure.axes:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            curves.setdefault(name, line)
    names = list(curves)
    widest = 0.075 * (max(map(len, names), default=0) + 7)  # inches: of a letter at 9 points
    columns = max(1, min(columns, len(names), int(figure.get_figwidth() / widest)))
    figure.legend(list(curves.values()), names, loc="outside lower center", ncols=columns)


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that mean something: 41,800; 1.23; 0.0456."""
    if value is None:
        return ""
    if isinstance(value, int) and abs(value) < 10**digits or value == 0:
        return f"{value:,}"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded:,.0f}"
    return f"{rounded:.{digits}g}" if abs(rounded) < 1e-4 else _trimmed(rounded, digits)


def _trimmed(value: float, digits: int) -> str:
    decimals = digits - len(f"{abs(value):.0f}") if abs(value) >= 1 else None
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:#.{digits}g}"


def length(value: float) -> str:
    """Tokens as they are spoken of: 64, 512, 1K, 128K."""
    whole = round(value)
    return f"{whole // 1024}K" if whole >= 1024 and whole % 1024 == 0 else f"{whole:,}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns aligned: the first to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |\n"

    rule = line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return line(head) + rule + "".join(map(line, rows))


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a row, below the names of the columns; what else a row has is left out."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same, to be sorted by a click."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def page(title: str, *parts: str) -> str:
    """A whole HTML document of parts that are HTML already."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def svg(figure: Figure) -> str:
    """The figure as an element of a page."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def save(figure: Figure, stem: Path) -> None:
    """As PNG and as SVG."""
    with style():
        figure.savefig(stem.with_suffix(".png"))
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
