"""HTML pages that need no network. Their tables are sorted by a click on a column's head."""

from __future__ import annotations

import html
from collections.abc import Sequence

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
     const number = parseFloat(text) * (/^\\d+K$/.test(text) ? 1024 : 1);
     return isNaN(number) ? text : number;
   }};
   [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : -1) * (down ? -1 : 1))
     .forEach(row => body.append(row));
 }};
</script></body></html>
"""


def page(title: str, *parts: str) -> str:
    """A whole HTML document; the parts are HTML already."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text cells."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def heading(title: str) -> str:
    return f"<h2>{html.escape(title)}</h2>"


def listed(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def preformatted(lines: str) -> str:
    return f"<pre>{html.escape(lines)}</pre>"
