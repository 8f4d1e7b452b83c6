"""The figure of a bench: a panel a quantity, a curve a model, a circle at each crossover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqzoo.bench.results import FIGURES, crossovers, measured
from seqzoo.report import figures as look
from seqzoo.report import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]  # the content of bench.json


@dataclass(frozen=True)
class Panel:
    """One quantity of a mode, as the figures, the tables and TensorBoard show it.

    Attributes:
        tag: its name in TensorBoard, below ``bench/``.
        unit: of the column.
        shown_unit, scale: figures and tables show the column divided by `scale`, in that unit.
    """

    tag: str
    mode: str
    column: str
    name: str
    unit: str
    shown_unit: str = ""
    scale: float = 1

    @property
    def title(self) -> str:
        """Name and unit in figures and tables."""
        return f"{self.name}, {self.shown_unit or self.unit}"

    @property
    def has_noise(self) -> bool:
        """Whether the column is its mode's figure, of which the noise is known."""
        return self.column == FIGURES[self.mode]

    def curve(self, results: Results, model: str) -> list[tuple[int, float]]:
        """(length, value) of a model, lengths ascending."""
        rows = measured(results["points"], model, self.mode)
        return [(row["length"], row[self.column]) for row in rows]


MIB = ("bytes", "MiB", 2**20)
SHARE = "training, share of the machine's peak"
PANELS = (
    Panel("train_tokens_per_second", "train", "tokens_per_second", "training", "tokens/s"),
    Panel("prefill_tokens_per_second", "prefill", "tokens_per_second", "prefill", "tokens/s"),
    Panel("decode_ms_per_token", "decode", "milliseconds", "decoding at length T", "ms/token"),
    Panel("peak_bytes", "train", "peak_bytes", "peak memory of training", *MIB),
    Panel("over_base_bytes", "train", "over_base_bytes", "training, memory over base", *MIB),
    Panel("prefill_peak_bytes", "prefill", "peak_bytes", "peak memory of prefill", *MIB),
    Panel(
        "prefill_over_base_bytes", "prefill", "over_base_bytes", "prefill, memory over base", *MIB
    ),
    Panel("state_bytes", "decode", "state_bytes", "state of one sequence", "bytes", "KiB", 2**10),
    Panel("train_peak_share", "train", "peak_share", SHARE, "fraction", "%", 0.01),
)
# Counted and not measured: it has a table and no panel.
WORK = Panel("", "train", "flops_per_token", "work of training", "FLOPs/token", "MFLOPs/token", 1e6)


def measured_panels(results: Results) -> list[Panel]:
    """The panels of the modes that a bench measured."""
    return [panel for panel in PANELS if panel.mode in results["bench"]["modes"]]


@look.style()
def figure(results: Results, panels: Sequence[Panel]) -> Figure:
    """Some panels in one figure."""
    columns = min(3, len(panels))
    whole = look.new_figure(4 * columns, 3.2 * -(-len(panels) // columns) + 0.5)
    for axes, panel in zip(look.grid(whole, len(panels), columns), panels, strict=True):
        draw(axes, panel, results)
    look.legend_below(whole, 2 * columns)
    whole.suptitle(subtitle(results), fontsize=9)
    return whole


def draw(axes: Axes, panel: Panel, results: Results) -> None:
    """A panel's curves with their noise as bars, and a circle at each crossover."""
    colours = look.colours(list(results["models"]))
    for model, colour in colours.items():
        if not (curve := panel.curve(results, model)):
            continue
        lengths, values = zip(*curve, strict=True)
        shown = [value / panel.scale for value in values]
        bars = None
        if panel.has_noise:
            rows = measured(results["points"], model, panel.mode)
            bars = [value * (row["noise"] or 0) for value, row in zip(shown, rows, strict=True)]
        axes.errorbar(lengths, shown, bars, marker="o", color=colour, label=model, elinewidth=0.8)
    if not axes.containers:
        axes.set(title=panel.title, xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing measured", ha="center", va="center", transform=axes.transAxes)
        return
    for cross in crossovers(results["points"], results["models"]):
        if panel.has_noise and cross["mode"] == panel.mode:
            colour = colours[cross["bounded"]]
            axes.plot(cross["length"], cross["value"], "o", ms=9, mfc="none", mec=colour, mew=1.2)
    _scale_axes(axes, panel, sorted({row["length"] for row in results["points"]}))


def _scale_axes(axes: Axes, panel: Panel, lengths: Sequence[int]) -> None:
    """Logarithmic axes with readable ticks: at most eight lengths."""
    from matplotlib.ticker import LogLocator

    axes.set(xscale="log", yscale="log", title=panel.title, xlabel="sequence length T, tokens")
    axes.set_xticks(lengths[:: -(-len(lengths) // 8)], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: text.length(value))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: text.number(value))
    axes.yaxis.set_minor_formatter(lambda value, _: text.number(value))


def subtitle(results: Results) -> str:
    """The machine and the settings, in a line."""
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
