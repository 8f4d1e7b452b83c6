"""The figure of a bench: log-log, a panel a quantity, a curve a family, crossovers marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqzoo import report
from seqzoo.bench.results import crossovers, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A quantity of a mode: what the figure and TensorBoard show.

    Args:
        tag: in TensorBoard, below ``bench/``.
        name: what it is; `unit`: of the column, which is divided by `scale` in the figure and
            tables, where the unit is `scaled`.
    """

    tag: str
    mode: str
    column: str
    name: str
    unit: str
    scaled: str = ""
    scale: float = 1

    @property
    def title(self) -> str:
        """What figures and tables show."""
        return f"{self.name}, {self.scaled or self.unit}"

    def curve(self, results: Mapping[str, Any], model: str) -> list[tuple[int, float]]:
        """(length, value), lengths ascending."""
        rows = measured(results["points"], model, self.mode)
        return [(row["length"], row[self.column]) for row in rows]


PANELS = (
    Panel("train_tokens_per_second", "train", "tokens_per_second", "training", "tokens/s"),
    Panel("prefill_tokens_per_second", "prefill", "tokens_per_second", "prefill", "tokens/s"),
    Panel("decode_ms_per_token", "decode", "milliseconds", "decoding at length T", "ms/token"),
    Panel("peak_bytes", "train", "peak_bytes", "peak memory of training", "bytes", "MiB", 2**20),
    Panel(
        "prefill_peak_bytes",
        "prefill",
        "peak_bytes",
        "peak memory of prefill",
        "bytes",
        "MiB",
        2**20,
    ),
    Panel("state_bytes", "decode", "state_bytes", "state of one sequence", "bytes", "KiB", 2**10),
)


@report.style()
def figure(results: Mapping[str, Any]) -> Figure:
    """Every panel that was measured, in one figure."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if panel.mode in results["bench"]["modes"]]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    whole = Figure(figsize=(4 * columns, 3.2 * rows + 0.5), layout="constrained")
    for axes, panel in zip(report.grid(whole, len(panels), columns), panels, strict=True):
        draw(axes, panel, results)
    report.legend_below(whole, 2 * columns)
    whole.suptitle(subtitle(results), fontsize=9)
    return whole


@report.style()
def single(results: Mapping[str, Any], panel: Panel) -> Figure:
    """One panel with its own legend."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = whole.subplots()
    draw(axes, panel, results)
    if axes.containers:
        axes.legend()
    return whole


def draw(axes: Axes, panel: Panel, results: Mapping[str, Any]) -> None:
    """A panel's curves, with the noise as bars, and where a growing state falls behind."""
    from matplotlib.ticker import LogLocator

    colours = report.colours(list(results["models"]))
    for model, colour in colours.items():
        curve = panel.curve(results, model)
        if not curve:
            continue
        lengths, values = zip(*curve, strict=True)
        shown = [value / panel.scale for value in values]
        bars = None
        if panel.column in ("tokens_per_second", "milliseconds"):
            rows = measured(results["points"], model, panel.mode)
            bars = [value * (row["noise"] or 0) for value, row in zip(shown, rows, strict=True)]
        axes.errorbar(lengths, shown, bars, marker="o", color=colour, label=model, elinewidth=0.8)
    if panel.column in ("tokens_per_second", "milliseconds"):
        for cross in crossovers(results["points"], results["models"]):
            if cross["mode"] == panel.mode:
                colour = colours[cross["bounded"]]
                axes.plot(
                    cross["length"], cross["value"], "o", ms=9, mfc="none", mec=colour, mew=1.2
                )
    if not axes.containers:
        axes.set(title=panel.title, xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing measured", ha="center", va="center", transform=axes.transAxes)
        return
    axes.set(xscale="log", yscale="log", title=panel.title, xlabel="sequence length T, tokens")
    lengths = sorted({row["length"] for row in results["points"]})
    axes.set_xticks(lengths[:: -(-len(lengths) // 8)], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: report.length(value))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: report.number(value))
    axes.yaxis.set_minor_formatter(lambda value, _: report.number(value))


def subtitle(results: Mapping[str, Any]) -> str:
    """The machine and what was fixed, in a line."""
    machine, bench = results["machine"], results["bench"]
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    size = f"{bench['parameters']:,} parameters" if bench["parameters"] else "own widths"
    batch = (
        f"{bench['tokens']:,} tokens a step"
        if bench["tokens"] is not None
        else f"batch {bench['batch_size']}"
    )
    return (
        f"{machine['name']}{threads}, {machine['dtype']}, torch {machine['versions']['torch']}; "
        f"{size}, {batch}; {results['date'][:10]}"
    )
