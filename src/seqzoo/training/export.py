"""Which weights a run exports: those of the best checkpoint, or the mean of the last ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqzoo.runs.checkpoint import step_of

if TYPE_CHECKING:
    from seqzoo.training.training import Training


def export(training: Training) -> dict[str, Any]:
    """Give the model the weights that the run exports.

    Returns:
        The part of the summary that is about them: the metrics of the exported weights, and those
        of the `last`, `best` and `average` weights. Of an interrupted run nothing is measured.
    """
    checkpoints = training.directory.checkpoints
    chosen, last = checkpoints.resolve("best"), checkpoints.resolve("last")
    assert chosen is not None  # the last step is saved, and a first checkpoint is the best
    if chosen != last:
        checkpoints.load_weights(chosen, training.model)
    if training.status != "finished":
        return {}
    final = {"last": training.metrics, "best": training.metrics}
    best_step = int(training.best.get("step", training.step))
    if chosen != last:
        training.terminal.line(f"the best checkpoint, of step {best_step:,}:")
        final["best"] = training.evaluate(quick=False, at=best_step)
    exported = "best"
    if average := _average(training, final["best"][training.best_metric]):
        final["average"] = average
        if training.better(average[training.best_metric], final["best"][training.best_metric]):
            exported = "average"
    return {
        "best_step": best_step,
        "exported": exported,
        **final[exported],
        **training.task.facts(),
        **final,
    }


def _average(training: Training, to_beat: float) -> dict[str, float]:
    """The metrics of the mean of the recent checkpoints, {} where there are not several.

    If it is better than the best checkpoint, the model keeps these weights. Otherwise it has its
    own again, and the metrics are the one that was compared.
    """
    paths = training.recent_checkpoints()
    if len(paths) < 2:
        if training.settings.average_checkpoints:
            training.terminal.line(
                "no mean of checkpoints, as there is one: lower trainer.checkpoint_every"
            )
        return {}
    model, name = training.model, training.best_metric
    first, last = map(step_of, (paths[0], paths[-1]))
    training.terminal.line(f"the mean of {len(paths)} checkpoints, from step {first:,} on:")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training.directory.checkpoints.load_mean(paths, model)
    metrics = training.evaluate(quick=not training.shortened, at=last)
    if not training.better(metrics[name], to_beat):
        training.terminal.line(f"its {name} is no better than that of the best checkpoint")
        model.load_state_dict(before)
        return {name: metrics[name]}
    training.terminal.line(f"its {name} is better than that of the best checkpoint: exported")
    more = training.task.quick_is_less and not training.shortened
    return training.evaluate(quick=False, at=last) if more else metrics
