"""The look of figures: style, colours, grids, legends, files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Characters that the font lacks are drawn as boxes; one warning for each would hide other output.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")

STYLE: dict[Any, Any] = {
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
FAMILIES = (  # in the order of their colours: a new family goes to the end, so that none changes
    "rnn lstm gru transformer linear_transformer rwkv4 rwkv5 rwkv6 rwkv7 retnet gla deltanet "
    "mamba2 mingru minlstm gated_deltanet kda deltaproduct hgrn2 rglru mamba3 mlstm slstm "
    "hybrid griffin samba gated_deltanet_hybrid xlstm fox"
).split()
LETTER_WIDTH = 0.075  # inches of a letter at 9 points
Colour = tuple[float, float, float]


@contextmanager
def style() -> Iterator[None]:
    """The project's look for every figure that is made inside, or in the function it decorates."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each name. A family of the zoo has the same one in every figure."""
    import matplotlib

    tab20: Any = matplotlib.color_sequences["tab20"]
    more: Any = matplotlib.color_sequences["tab20b"]
    palette = [*tab20[::2], *tab20[1::2]]  # ten strong, the same ten pale; then twenty others
    palette += [*more[::4], *more[2::4], *more[1::4], *more[3::4]]
    fixed = {name: palette[i] for i, name in enumerate(FAMILIES) if name in names}
    free = [colour for colour in palette if colour not in fixed.values()]
    others = [name for name in names if name not in fixed]
    known = fixed | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: known[name] for name in names}


def grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` axes in rows of at most `columns`."""
    columns = min(columns, count)
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count]


def heat_map(
    axes: Axes,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str | None = None,
    **look: Any,
) -> Any:
    """A matrix with the names of its rows and, above it, of its columns; returned for a colour bar.

    Args:
        label: what the colours mean, for a colour bar of its own.
        **look: for matplotlib's `imshow`.
    """
    image = axes.imshow(values, **look)
    flat = LETTER_WIDTH * max(map(len, columns)) * len(columns)  # inches
    upright = flat > axes.bbox.width / axes.figure.dpi
    axes.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=7 if max(len(rows), len(columns)) > 30 else 9)
    axes.xaxis.tick_top()
    axes.grid(False)
    if label:
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    return image


def name_points(axes: Axes, points: Any, names: Sequence[str]) -> None:
    """Write names beside points (N, 2), as far as there is room: none over an earlier one."""
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()  # only then places in the figure are known
    written: list[Bbox] = []
    for point, name in zip(points, names, strict=True):
        text = axes.annotate(name, point, fontsize=7)
        place = text.get_window_extent()
        if any(place.overlaps(other) for other in written):
            text.remove()
        else:
            written.append(place)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for the curves of all axes, below them, in at most that many columns."""
    curves: dict[str, Any] = {}
    for axes in figure.axes:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            curves.setdefault(name, line)
    names = list(curves)
    widest = LETTER_WIDTH * (max(map(len, names), default=0) + 7)  # 7: the line before the name
    columns = max(1, min(columns, len(names), int(figure.get_figwidth() / widest)))
    figure.legend(list(curves.values()), names, loc="outside lower center", ncols=columns)


def svg(figure: Figure) -> str:
    """The figure as an element of an HTML page."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG under its name; returns the PNG files."""
    with style():
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return [folder / f"{name}.png" for name in figures]
