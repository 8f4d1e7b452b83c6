"""Tasks: what is learnt from which data. The table of them, and how one is made.

A task is made in two steps, so that a wrong request is refused before torch is loaded: `prepare`
reads the data, `make` wraps it. To add a task: a file in ``tasks/``, a line here, and
``configs/task/NAME.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seqzoo.config import files, plugins
from seqzoo.config.schema import Declaration, Rule, accepted, check, check_keys, declared, load
from seqzoo.errors import UserError
from seqzoo.tasks import fit

if TYPE_CHECKING:
    from seqzoo.tasks.task import Metric, Task


@dataclass(frozen=True)
class TaskEntry:
    """A task of the table.

    Attributes:
        data: the function that reads its data, ``package.module:function``, which loads no torch.
            Its keyword-only parameters are keys of the task.
        task: the class, whose keyword-only parameters are the other keys.
        architectures: those that can learn it.
        commands: what a run of it can be used for, with arguments to try it with.
        sources: the keys that name the data, of which `seqzoo eval --path` replaces all by `path`.
        length: the key with the length of its longest sequences.
        rules: what has to hold among the keys of the task and those of other sections; each gets
            the whole configuration.
    """

    data: str
    task: str
    architectures: tuple[str, ...]
    commands: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ("corpus", "path")
    length: str = "seq_len"
    rules: tuple[Rule, ...] = ()


def probe_entry(data: str) -> TaskEntry:
    """The entry of a probe.

    Args:
        data: the function that gives its `seqzoo.data.probes.probe.Probe`, as in `TaskEntry`.
    """
    return TaskEntry(
        data,
        "seqzoo.tasks.probe:ProbeTask",
        architectures=("decoder_only",),
        sources=(),
        rules=(fit.probe_can_be_made,),
    )


_PARTS = [f"{part}{side}" for part in ("", "val_", "test_") for side in ("source", "target")]
_PATHS = ("path", "val_path", "test_path")
PROBES = (  # each is `load` of a file of its name in data/probes
    "mqar needle copying selective_copying induction parity modular_arithmetic group mad"
).split()

TASKS: dict[str, TaskEntry] = {
    "charlm": TaskEntry(
        "seqzoo.data.corpora:load",
        "seqzoo.tasks.charlm:CharLM",
        architectures=("decoder_only",),
        commands={"generate": '--prompt "The "', "inspect": ""},
    ),
    "translation": TaskEntry(
        "seqzoo.data.pairs:load",
        "seqzoo.tasks.translation:Translation",
        architectures=("decoder_only", "encoder_decoder"),
        commands={"translate": "< sentences.txt"},
        sources=("corpus", *_PATHS, *_PARTS),
        length="max_len",
        rules=(fit.vocabularies_fit,),
    ),
    "classification": TaskEntry(
        "seqzoo.data.labelled:load",
        "seqzoo.tasks.classification:Classification",
        architectures=("classifier",),
        commands={"classify": '"Now is the winter of our discontent"'},
        sources=("corpus", *_PATHS),
        length="max_len",
    ),
    **{name: probe_entry(f"seqzoo.data.probes.{name}:load") for name in PROBES},
}


def entries() -> dict[str, TaskEntry]:
    """Every task by its name, those of plugins included."""
    return plugins.registered("tasks", TASKS)


def entry(name: str) -> TaskEntry:
    """The entry of a task's name.

    Raises:
        UserError: no such task; the nearest name is offered.
    """
    return files.entry("task", name, entries())


def supporting(command: str) -> list[str]:
    """The tasks whose runs a command takes."""
    return [name for name, one in entries().items() if command in one.commands]


def check_supported(command: str, name: str, where: object) -> None:
    """Refuse a run, at `where`, of a task that a command is not for."""
    supported = entry(name).commands
    if command not in supported:
        able = " or ".join(supporting(command))
        raise UserError(
            f"{where}: a run of task={name}: use seqzoo {next(iter(supported), 'eval')}; "
            f"{command} needs a run of task={able}"
        )


def metric(name: str, task: str | None = None) -> Metric:
    """What is known of a metric such as `val/bleu` or `bleu_by_words/06-10`: see `Metric`. One that
    no task declares is better the lower it is.

    Args:
        task: the one whose metric it is; None: any that has it.
    """
    from seqzoo.tasks.task import Metric

    last = re.sub("^(train|val|test)/", "", name).partition("_by_")[0]
    for each in entries() if task is None else [task]:
        for one in declared_metrics(each):
            if one.name == last:
                return one
    return Metric(last, higher_is_better=last.endswith("tokens_per_second"))


def declared_metrics(task: str | None) -> list[Metric]:
    """The metrics of a task, in its order; none of a task that is not there."""
    from seqzoo.tasks.task import Metric

    known = entries()
    return [Metric(*each) for each in load(known[task].task).metrics] if task in known else []


def declaration(name: str) -> Declaration:
    """What the keys of a task allow: those of its data and those of its class."""
    one = entry(name)
    return declared(one.data) | declared(one.task)


def check_task(keys: Mapping[str, Any]) -> None:
    """Refuse a task configuration with a key or a value that is not allowed."""
    entry(keys["name"])  # refuses an unknown one
    check_keys(keys, files.defaults("task", keys["name"]), "task.")
    check(declaration(keys["name"]), keys, "task.")


def check_fit(config: Mapping[str, Any]) -> None:
    """Refuse a task that its architecture or its model cannot learn."""
    task, architecture = config["task"], config["architecture"]
    one = entry(task["name"])
    if architecture["name"] not in one.architectures:
        raise UserError(
            f"architecture={architecture['name']}: task={task['name']} is learnt by "
            f"{' or '.join(one.architectures)}: give architecture={one.architectures[0]}"
        )
    fit.positions_suffice(config, one.length)
    for rule in one.rules:
        rule(config, "")


def prepare(keys: Mapping[str, Any], existing: Mapping[str, Any] = {}, **options: Any) -> Any:
    """Read, split and encode the data that a task's configuration names. Loads no torch.

    Args:
        existing: tokenizers and the like by the name of their file, as `Task.tokenizers` has them,
            in place of those made for this data.
        **options: `whole=True`: nothing is held out, all of the data is `val`.

    Raises:
        UserError: data that is missing, empty, too short, or not text.
    """
    return _call(entry(keys["name"]).data, keys, existing=existing, **options)


def make(keys: Mapping[str, Any], data: Any, *, seed: int) -> Task:
    """The task over prepared data. `seed` sets the order of the batches."""
    task: Task = _call(entry(keys["name"]).task, keys, data, seed=seed)
    return task


def _call(path: str, keys: Mapping[str, Any], *args: Any, **more: Any) -> Any:
    """Call with those keys that the function takes; a run may be older than a key."""
    keys = {**files.defaults("task", keys["name"]), **keys}
    taken = {key: value for key, value in keys.items() if key in accepted(path)}
    return load(path)(*args, **taken, **more)
