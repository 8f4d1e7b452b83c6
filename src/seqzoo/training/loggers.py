"""Where a run's numbers, texts and figures go. Each logger is loaded when it is used."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from seqzoo.config.files import flat
from seqzoo.config.schema import checked
from seqzoo.config.values import Text
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = Mapping[str, Any]


class Logger:
    """One place to log to. Does nothing: derive from it and override what is needed.

    The constructor takes the keys of its section as keyword arguments.
    """

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        """Begin a run, or go on with it.

        Args:
            config: the whole configuration.
            step: at which the run goes on; what was logged beyond it is to be taken back. 0: a new
                run.
            metrics: the names of the most important scalars.
        """

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        """Numbers by their tag. `position` has `step`, `tokens` and `seconds`."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Some text, such as a sample."""

    def figures(self, figures: Mapping[str, Figure], step: int) -> None:
        """Figures by their tag."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """End the run. The summary of a failed one has its `status` and little else."""


class Loggers(Logger):
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = loggers
        self.started: list[Logger] = []

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        for logger in self.loggers:
            logger.start(directory, config, step=step, metrics=metrics)
            self.started.append(logger)

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.scalars(values, position)

    def text(self, tag: str, text: str, step: int) -> None:
        for logger in self.loggers:
            logger.text(tag, text, step)

    def figures(self, figures: Mapping[str, Figure], step: int) -> None:
        for logger in self.loggers:
            logger.figures(figures, step)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Closes those that were started, the last one first, also where one of them raises."""
        with ExitStack() as stack:
            for logger in self.started:
                stack.callback(logger.close, summary)


class MetricsFile(Logger):
    """metrics.jsonl and samples.txt in the run directory. Every run has this logger."""

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        self.directory = directory
        directory.begin_logs(step)

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        self.directory.add_metrics({**position, **values})

    def text(self, tag: str, text: str, step: int) -> None:
        if tag == "sample":
            self.directory.add_sample(text, step)


class TensorBoard(Logger):
    """Event files in RUN/tensorboard: `seqzoo dashboard` shows them."""

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        make_summaries: Any = hparams  # which has no types
        writer: Any = SummaryWriter(
            str(directory.tensorboard), purge_step=step + 1 if step else None
        )
        self.writer = writer
        keys = {} if step else _hyperparameters(config)
        shown = dict.fromkeys(metrics, 0.0)
        experiment, session_start, self._session_end = make_summaries(keys, shown)
        if not step:  # the HPARAMS tab reads these once, and its metrics from the scalars
            writer._get_file_writer().add_summary(experiment)
            writer._get_file_writer().add_summary(session_start)

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, int(position["step"]))

    def text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, "    " + text.replace("\n", "\n    "), step)

    def figures(self, figures: Mapping[str, Figure], step: int) -> None:
        for tag, figure in figures.items():
            self.writer.add_figure(tag, figure, step, close=False)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Adds the run as one point of throughput against sequence length, beside a bench's."""
        if "tokens_per_second" in summary:
            speed, length = summary["tokens_per_second"], summary["seq_len"]
            self.writer.add_scalar("bench/train_tokens_per_second", speed, length)
        self.writer._get_file_writer().add_summary(self._session_end)
        self.writer.close()


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as the columns of HPARAMS.

    TensorBoard sorts them and shows the first five. So the choice of a section has the section's
    name alone: `architecture` and `model` come first.
    """
    keys = {key.removesuffix(".name"): value for key, value in flat(config).items()}
    return {
        key: value
        if isinstance(value, (int, float, str)) and not isinstance(value, bool)
        else str(value)
        for key, value in keys.items()
    }


class Wandb(Logger):
    """Weights & Biases, online or into RUN/wandb."""

    @checked()
    def __init__(
        self,
        *,
        project: Text,
        name: Text | None,
        entity: Text | None,
        mode: Literal["online", "offline", "disabled"] | None,
    ) -> None:
        self.wandb = _extra("wandb")
        self.keys = {"project": project, "entity": entity, "mode": mode}
        self.name = name

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        self.run = self.wandb.init(
            **self.keys,
            name=self.name or _run_name(directory),
            id=hashlib.sha256(str(directory.path.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(directory.path),
            config=dict(config),
            settings=self.wandb.Settings(silent=True, console="off"),
        )

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        self.run.log({**position, **values}, step=int(position["step"]))

    def text(self, tag: str, text: str, step: int) -> None:
        self.run.log({tag: self.wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def figures(self, figures: Mapping[str, Figure], step: int) -> None:
        images = {tag: self.wandb.Image(figure) for tag, figure in figures.items()}
        if images:
            self.run.log(images, step=step)

    def close(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=1 if summary.get("status") == "failed" else 0)


class Trackio(Logger):
    """Trackio: a dashboard on this machine, or in a Space of the Hugging Face Hub."""

    @checked()
    def __init__(self, *, project: Text, name: Text | None, space_id: Text | None) -> None:
        self.trackio = _extra("trackio")
        self.project, self.name, self.space_id = project, name, space_id

    def start(
        self, directory: RunDirectory, config: Config, *, step: int, metrics: Sequence[str]
    ) -> None:
        self.run = self.trackio.init(
            project=self.project,
            name=self.name or _run_name(directory),
            space_id=self.space_id,
            config=flat(config),
            resume="allow",
            embed=False,
        )

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        self.run.log({**position, **values}, step=int(position["step"]))

    def text(self, tag: str, text: str, step: int) -> None:
        self.run.log({tag: self.trackio.Markdown(f"```\n{text}\n```")}, step=step)

    def figures(self, figures: Mapping[str, Figure], step: int) -> None:
        images = {tag: self.trackio.Image(_pixels(figure)) for tag, figure in figures.items()}
        if images:
            self.run.log(images, step=step)

    def close(self, summary: Mapping[str, Any]) -> None:
        self.trackio.finish()  # the run's own `finish` would be called again at the exit


def _extra(package: str) -> Any:
    """A package that is installed only on request.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(
            f"logger={package}: {package} is not installed: pip install 'seqzoo[{package}]', or "
            "leave it out"
        ) from None


def _run_name(directory: RunDirectory) -> str:
    """The end of the run directory's path, such as `charlm/lstm/2026-01-31_12-00-00`."""
    return "/".join(directory.path.resolve().parts[-3:])


def _pixels(figure: Figure) -> Any:
    """A figure as an array (height, width, 3) of bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
