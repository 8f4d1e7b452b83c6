"""Which runs can be ranked together, and by which metric.

A metric ranks runs that were evaluated on the same data. A mean over tokens, such as a loss, also
needs the same tokenizer; bits a character do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from seqzoo import tasks
from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.config.values import shown
from seqzoo.errors import UserError, nearest


def comparable(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """The runs as sets that were evaluated on the same data of the same task, in order. A run of
    which that is not known, such as one that failed at once, joins the first set of its task."""
    every = all("val_sha256" in run.digests for run in runs if run.finished)
    digest = "val_sha256" if every else "data_sha256"
    found: dict[tuple[str | None, str | None], list[TrainingRun]] = {}
    for run in sorted(runs, key=lambda run: digest not in run.digests):  # the unknown last
        key = run.task, run.digests.get(digest)
        if key[1] is None:
            key = next((each for each in found if each[0] == run.task), key)
        found.setdefault(key, []).append(run)
    return [sorted(each, key=list(runs).index) for each in found.values()]


def tokenizers(runs: Sequence[TrainingRun]) -> list[str]:
    """The different tokenizers of runs, in words."""
    found: dict[str, str] = {}
    for run in runs:
        kind = shown(run.keys.get("task.tokenizer"))
        if kind == "bpe":
            kind += f" of {run.keys.get('task.vocab_size'):,}"
        if digest := run.digests.get("tokenizer_sha256"):
            found.setdefault(digest, kind)
    return list(found.values())


def pick_metric(runs: Sequence[TrainingRun], wanted: str | None) -> str:
    """The metric given, or the first of the task's validation metrics that every finished run has
    and that can rank them.

    Raises:
        UserError: not all of them have it, or it cannot rank them.
    """
    measured = [run for run in runs if run.metrics]
    measured = [run for run in measured if run.finished] or measured
    if not measured:
        found = ", ".join(f"{run.folder} ({run.status})" for run in runs)
        raise UserError(f"{found}: nothing measured yet: leave out such runs")
    logged = dict.fromkeys(key for line in measured[0].metrics for key in line if "/" in key)
    common = [
        key
        for key in logged
        if all(run.curve(key, "step") for run in measured)
        and not isinstance(measured[0].curve(key, "step")[0][1], str)
    ]
    several = len(kinds := tokenizers(measured)) > 1
    fair = [key for key in common if not (several and _of_tokens(key, measured[0]))]
    own = [f"val/{each.name}" for each in tasks.declared_metrics(measured[0].task)]
    how = own[0].partition("_")[0] if own else ""  # such as val/stream: stream_bpc is read alike
    own.sort(key=lambda name: not name.startswith(how))
    ordered = sorted(fair, key=lambda key: own.index(key) if key in own else len(own))
    ordered = [key for key in ordered if key.startswith("val/")] + ordered
    if wanted in common and wanted not in fair:
        raise UserError(
            f"--metric {wanted}: a mean over tokens, and these runs have {len(kinds)} tokenizers "
            f"({', '.join(kinds)}): {_instead(ordered)}"
        )
    if not ordered or (wanted is not None and wanted not in common):
        raise UserError(
            f"--metric {wanted or 'val/loss'}: not in all of these runs"
            f"{nearest(wanted or '', common)}"
        )
    return wanted or ordered[0]


def _instead(metrics: Sequence[str]) -> str:
    if not metrics:
        return "compare the runs of one tokenizer"
    return f"give --metric {metrics[0]}, or compare the runs of one tokenizer"


def why(runs: Sequence[TrainingRun], metric: str) -> str:
    """The reason why runs are ranked by a metric that is not a mean over tokens; empty where there
    is none."""
    kinds = tokenizers(runs)
    if len(kinds) < 2:
        return ""
    unit = "bits a character" if metric.endswith("bpc") else "no mean over tokens"
    return (
        f"The runs have {len(kinds)} tokenizers ({', '.join(kinds)}), and a loss a token says "
        f"nothing across them: they are ranked by {metric}, {unit}.\n"
    )


def _of_tokens(metric: str, run: TrainingRun) -> bool:
    return tasks.metric(metric, run.task).of_tokens
