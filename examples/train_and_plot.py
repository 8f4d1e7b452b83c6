"""Train a model and plot its loss.

    python examples/train_and_plot.py model=gru trainer.max_seconds=30
    python examples/train_and_plot.py model=lstm task.path=my.txt trainer.max_steps=500

The arguments are those of `seqzoo train`. The figure is curve.png in the run directory.
"""

import sys

from matplotlib.figure import Figure

import seqzoo


def curve(run: seqzoo.Run) -> Figure:
    """The loss of training batches and of the validation data against the step."""
    columns = run.metrics()  # a list for each metric, as long as the list of steps
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    validation = next(name for name in columns if name.startswith("val/") and "loss" in name)
    for name, style in (("train/loss", "-"), (validation, "o-")):
        # A line of metrics.jsonl has the metrics of one moment: the others are None there.
        points = [
            (step, value)
            for step, value in zip(columns["step"], columns[name], strict=True)
            if value is not None
        ]
        axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="step", ylabel="nats a token", title=run.config["model"]["name"])
    axes.legend()
    return figure


def main() -> None:
    run = seqzoo.train(*sys.argv[1:])
    path = run.folder / "curve.png"
    curve(run).savefig(path, dpi=150)
    print(f"written to {path}")


if __name__ == "__main__":
    try:
        main()
    except seqzoo.UserError as error:  # a wrong request: one line says what to change
        sys.exit(str(error))
