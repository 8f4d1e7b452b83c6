"""Where a run's numbers go: metrics.jsonl, TensorBoard, samples.txt and the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from seqzoo.runs.checkpoint import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Log:
    """Writes a run's scalars, texts and summary.

    `metrics` are the columns of TensorBoard's HPARAMS. On resuming at `step`, what an interrupted
    run had logged beyond it is taken back, so no point stands twice.
    """

    def __init__(
        self, folder: Path, *, step: int, hyperparameters: Mapping[str, Any], metrics: Sequence[str]
    ) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        if self.metrics_path.exists():
            lines = self.metrics_path.read_text().splitlines(keepends=True)
            write(self.metrics_path, "".join(line for line in lines if _step_of(line) <= step))
        self.metrics = self.metrics_path.open("a", buffering=1)
        self.samples = (folder / "samples.txt").open("a", buffering=1)
        self.board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )
        if (
            not step
        ):  # the HPARAMS tab reads the start of a session here, and its metrics from the scalars
            values = {
                k: v if isinstance(v, (int, float, str)) and not isinstance(v, bool) else str(v)
                for k, v in hyperparameters.items()
            }
            experiment, start, self._end = hparams(values, dict.fromkeys(metrics, 0.0))
            self.board._get_file_writer().add_summary(experiment)
            self.board._get_file_writer().add_summary(start)
        else:
            self._end = hparams({}, {})[2]

    def scalars(self, values: Mapping[str, float | str], **where: float) -> None:
        """A line of metrics.jsonl, and each number as a TensorBoard scalar. `where` has step,
        tokens, seconds."""
        self.metrics.write(json.dumps({**where, **values}) + "\n")
        for tag, value in values.items():
            if not isinstance(value, str):
                self.board.add_scalar(tag, value, int(where["step"]))

    def sample(self, text: str, step: int) -> None:
        self.samples.write(f"--- step {step}\n{text}\n\n")
        self.board.add_text("sample", "    " + text.replace("\n", "\n    "), step)

    def figures(self, drawn: Mapping[str, Figure], step: int) -> None:
        """Images for TensorBoard, by tag."""
        for tag, figure in drawn.items():
            self.board.add_figure(tag, figure, step, close=False)

    def speed(self, seq_len: int, tokens_per_second: float) -> None:
        """The run as one point of throughput against sequence length, beside those of a bench."""
        self.board.add_scalar("bench/train_tokens_per_second", tokens_per_second, seq_len)

    def close(self) -> None:
        self.board._get_file_writer().add_summary(self._end)
        self.board.close()
        self.metrics.close()
        self.samples.close()


class Progress:
    """The terminal: a bar with loss, tokens/s and time left, and lines above it. Plain lines where
    there is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar = tqdm(
            total=1.0,
            disable=quiet or not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar:24}| {desc}  {elapsed}, {remaining} left",
            leave=False,
        )

    def update(self, *, fraction: float, step: int, loss: float, tokens_per_second: float) -> None:
        if self.bar.n == 0:
            self.bar.initial = fraction  # of a run that goes on: time left counts from here
        text = f"step {step:,}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update(min(1.0, fraction) - self.bar.n)

    def say(self, text: str = "") -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # a line cut short by a crash
