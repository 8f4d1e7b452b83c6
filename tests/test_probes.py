"""Probes: examples are what a slow definition says, depend on seed and step alone, and are learnt,
measured and continued through the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import seqzoo
from calls import assert_refused, status
from seqzoo import tasks
from seqzoo.cli.checks import check_config
from seqzoo.cli.compose import compose, parse
from seqzoo.config.files import defaults, names
from seqzoo.config.schema import declared
from seqzoo.data.probes import group, mad, mad_recall, probe
from seqzoo.data.probes.probe import IGNORE, Probe
from seqzoo.tasks import next_token
from seqzoo.tasks.probe import ProbeTask

KINDS = get_args(mad.Kind)
GROUPS = get_args(group.Group)
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in tasks.PROBES if name not in ("mad", "group")),
    ("parity", {"ask": "each"}),
    ("mqar", {"random_fill": False, "power": 1.0, "vocab_size": 40}),
    ("modular_arithmetic", {"modulus": 7, "lengths_from": 2}),
    *(("group", {"group": name}) for name in GROUPS),
    ("group", {"ask": "last", "lengths_from": 1}),
    *(("mad", {"kind": kind}) for kind in KINDS),
]
each_case = pytest.mark.parametrize(
    ("name", "keys"),
    CASES,
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)


def made(name: str, /, **keys: Any) -> Probe:
    found: Probe = tasks.prepare({**defaults("task", name), **keys})
    return found


def task_of(name: str, *, seed: int = 3, **keys: Any) -> ProbeTask:
    keys = {**defaults("task", name), **keys}
    task: Any = tasks.make(keys, tasks.prepare(keys), seed=seed)
    return task


# ---- what is asked for: each definition reads one example from left to right, as symbols

Asked = dict[int, str]  # place -> symbol


def define_parity(read: list[str], keys: dict[str, Any]) -> Asked:
    places = range(len(read)) if keys["ask"] == "each" else [len(read) - 1]
    return {t: "01"[read[: t + 1].count("1") % 2] for t in places}


def define_modular_arithmetic(read: list[str], keys: dict[str, Any]) -> Asked:
    assert read[-1] == "="
    return {len(read) - 1: str(eval("".join(read[:-1])) % keys["modulus"])}


def define_group(read: list[str], keys: dict[str, Any]) -> Asked:
    found: Asked = {}
    product = None
    for t, symbol in enumerate(read):
        if keys["group"][0] == "Z":
            product = (product or 0) + int(symbol)
            found[t] = str(product % 60)
            continue
        one = [int(place) - 1 for place in symbol]
        product = one if product is None else [product[place] for place in one]
        found[t] = "".join(str(place + 1) for place in product)
    return found if keys["ask"] == "each" else {len(read) - 1: found[len(read) - 1]}


def define_copying(read: list[str], keys: dict[str, Any]) -> Asked:
    bar = read.index("|")
    assert read[0] == "$" and read[1:bar] == read[bar + 1 :]
    return {bar + i: symbol for i, symbol in enumerate([*read[1:bar], "."])}


def define_selective_copying(read: list[str], keys: dict[str, Any]) -> Asked:
    letters = [symbol for symbol in read if symbol not in "_?"]
    assert read[-len(letters) :] == ["?"] * len(letters) and len(letters) == keys["n_data"]
    return dict(enumerate(letters, len(read) - len(letters)))


def define_induction(read: list[str], keys: dict[str, Any]) -> Asked:
    assert read.count("!") == 2 and read[-1] == "!" and read.index("!") < len(read) - 2
    return {len(read) - 1: read[read.index("!") + 1]}


def define_mqar(read: list[str], keys: dict[str, Any]) -> Asked:
    n = 2 * keys["pairs"]
    values = dict(zip(read[:n:2], read[1:n:2], strict=True))
    assert len(values) == len(set(values.values())) == keys["pairs"]
    assert all(key[0] == "k" and value[0] == "v" for key, value in values.items())
    found = {t: values[read[t]] for t in range(n, len(read), 2) if read[t] in values}
    assert keys["random_fill"] or len(found) == keys["pairs"]
    return found


def define_needle(read: list[str], keys: dict[str, Any]) -> Asked:
    places = [t for t, symbol in enumerate(read[:-2]) if symbol[0] == "k" and len(symbol) > 1]
    values = {read[t]: read[t + 1] for t in places}
    assert len(values) == keys["pairs"] and read[-2] == "?"
    return {len(read) - 1: values[read[-1]]}


def define_mad(read: list[str], keys: dict[str, Any]) -> Asked:
    n = len(read)
    if keys["kind"] == "compression":
        assert read[n // 2 :] == ["15"] * (n // 2) and "15" not in read[: n // 2]
        return dict(enumerate(read[: n // 2], n // 2))
    if keys["kind"] == "selective_copying":
        letters = [symbol for symbol in read if symbol not in ("14", "15")]
        assert len(letters) == 16 and read[-17:] == ["15", *["14"] * 16]
        return dict(enumerate(letters, n - 16))
    if keys["kind"] == "memorization":
        return {t: MEMORY.setdefault(read[t - 1], "?") for t in range(1, n, 2)}
    values: dict[Any, Any] = {}
    found: Asked = {}
    for key, value, place in _pairs(read, keys["kind"]):
        if key in values:
            assert value == "" or values[key].startswith(value)
            found |= dict(enumerate(values[key].split(), place))
        values.setdefault(key, value)
    return found


MEMORY: dict[str, str] = {}


def _pairs(read: list[str], kind: str) -> Iterator[tuple[str, str, int]]:
    """Keys, their values, and where the first token of the value is asked for."""
    if kind != "fuzzy_recall":
        for t in range(0, len(read), 2):
            if int(read[t]) < 16:  # noise is not
                yield read[t], " ".join(read[t + 1 : t + 2]), t
        return
    t = sum(symbol == "15" for symbol in read)
    while t < len(read):
        begin = t
        while t < len(read) and int(read[t]) < 7:
            t += 1
        middle = t
        while t < len(read) and int(read[t]) >= 7:
            t += 1
        assert middle - begin == 3
        yield " ".join(read[begin:middle]), " ".join(read[middle:t]), middle - 1


@each_case
def test_targets_are_those_of_the_definition(name: str, keys: dict[str, Any]) -> None:
    keys = {**defaults("task", name), **keys}
    data = made(name, **keys)
    define = globals()[f"define_{name}"]
    if keys.get("kind") == "memorization":
        inputs, targets, _ = data.held_out("val", data.train[-1], 5, 200)
        MEMORY.clear()
        for key, value in zip(inputs[:, ::2].ravel(), targets[:, 1::2].ravel(), strict=True):
            assert MEMORY.setdefault(str(key), str(value)) == str(value)
        assert len(MEMORY) == 127 == len(set(MEMORY.values()))
    for split in ("val", "test"):
        for sizes in data.points(split):
            inputs, targets, _ = data.held_out(split, sizes, 0, 20)
            assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == np.int64
            for read, wanted in zip(inputs, targets, strict=True):
                symbols = [data.symbols[token] for token in read]
                asked = {t: data.symbols[y] for t, y in enumerate(wanted) if y != IGNORE}
                expected = define(symbols, {**keys, **sizes})
                if keys.get("ask") == "each" and split == "test":  # only what is longer
                    assert len(read) > (seen := keys["lengths_to"])
                    expected = {t: answer for t, answer in expected.items() if t >= seen}
                if name == "mqar" and keys["random_fill"]:  # the fill may be a key too
                    assert len(asked) == sizes["pairs"] == len({symbols[t] for t in asked})
                    assert asked.items() <= expected.items()
                elif keys.get("kind") == "fuzzy_recall":  # inputs end before the last token
                    last = asked.pop(len(read) - 1)
                    assert int(last) >= 7 and asked.items() <= expected.items()
                    assert set(expected) - set(asked) <= {len(read) - 1}
                else:
                    assert asked == expected


def test_the_two_marks_of_nothing_asked_are_one() -> None:
    assert probe.IGNORE == next_token.IGNORE


@pytest.mark.parametrize("name", GROUPS)
def test_products_are_those_of_a_group(name: str) -> None:
    table = group.products(name)
    n = len(table)
    assert n == {"Z60": 60, "S3": 6, "S4": 24, "A5": 60, "S5": 120}[name]
    assert len(set(group.symbols(name))) == n
    assert (table[0] == np.arange(n)).all() and (table[:, 0] == np.arange(n)).all()  # neutral
    assert (np.sort(table, 0) == np.arange(n)[:, None]).all()  # every row and column once
    assert (np.sort(table, 1) == np.arange(n)).all()
    assert (table[table] == table[:, table]).all()  # (a b) c = a (b c)
    assert (table == table.T).all() == (name == "Z60")


def test_numbers_drawn_are_different_and_follow_their_weights() -> None:
    random = np.random.default_rng(0)
    drawn = probe.distinct(random, 20_000, 2, 4)
    assert drawn.shape == (20_000, 2) and (drawn[:, 0] != drawn[:, 1]).all()
    shares = np.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16) / len(drawn)
    assert shares == pytest.approx(np.where(np.eye(4).ravel() == 1, 0, 1 / 12), abs=0.01)
    weights = np.array([1, 2, 3, 4], dtype=np.float32)
    drawn = probe.distinct(random, 20_000, 2, 4, weights)
    p = weights / weights.sum()
    one_after_the_other = np.array([[a * b / (1 - a) for b in p] for a in p])
    np.fill_diagonal(one_after_the_other, 0)
    shares = np.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16) / len(drawn)
    assert shares == pytest.approx(one_after_the_other.ravel(), abs=0.01)


def test_fuzzy_recall_trains_on_keys_of_every_size() -> None:
    random = np.random.default_rng(0)
    inputs, targets, _ = mad_recall.fuzzy_recall(
        random, 50, length=64, vocab_size=16, training=True
    )
    sizes = set()
    for read in inputs:
        row = "".join("k" if token < 7 else "v" for token in read[read < 15])
        sizes |= set(map(len, row.split("v")))
    assert {1, 2, 3} <= sizes <= {0, 1, 2, 3}
    recalls = made("mad", kind="recall").training(0, 0, 4)
    assert (recalls.targets[:, :-1] == recalls.inputs[:, 1:]).all()  # every next token
    only = made("mad", kind="recall", next_tokens=False).training(0, 0, 4)
    assert (only.inputs == recalls.inputs).all() and (only.targets[:, 1::2] == IGNORE).all()


# ---- what examples depend on


@each_case
def test_batches_depend_on_seed_and_step_alone(name: str, keys: dict[str, Any]) -> None:
    task, again = task_of(name, **keys), task_of(name, **keys)
    assert task.data_sha256 == again.data_sha256
    steps = [4, 0, 9]
    batches = {step: task.batch(step) for step in steps}
    for step in sorted(steps):
        one, same = batches[step], again.batch(step)
        assert torch.equal(one.inputs, same.inputs) and torch.equal(one.targets, same.targets)
        assert one.fresh and 0 < one.n_tokens <= one.inputs.numel()
        assert one.n_targets == int((one.targets != IGNORE).sum()) > 0
        assert 0 <= int(one.inputs.min()) and int(one.inputs.max()) < task.sizes()["vocab_size"]
    other = task_of(name, seed=4, **keys).batch(0).inputs
    assert other.shape != batches[0].inputs.shape or not torch.equal(other, batches[0].inputs)


@each_case
def test_no_evaluation_example_is_trained(name: str, keys: dict[str, Any]) -> None:
    task = task_of(name, **{**keys, "batch_size": 64})
    held_out = set()
    for split in task.splits():
        for sizes in task.data.points(split):
            rows = task.data.held_out(split, sizes, 0, 100).inputs
            held_out |= {row.tobytes() for row in rows}
    trained = {row.numpy().tobytes() for step in range(40) for row in task.batch(step).inputs}
    assert not held_out & trained


def test_training_and_evaluation_draw_different_numbers() -> None:
    """With the seed and the number that would give the same ones."""
    data = task_of("copying", lengths_from=8, lengths_to=8, test_lengths=[8]).data
    drawn = [
        data.training(8, 0, 4),
        *(data.held_out(split, {"length": 8}, 0, 4) for split in ("val", "test")),
    ]
    assert len({each.inputs.tobytes() for each in drawn}) == 3


def test_a_batch_is_of_every_length() -> None:
    task = task_of("parity", lengths_from=3, lengths_to=6)
    lengths = []
    for step in range(60):
        batch = task.batch(step)
        ends = (batch.targets != IGNORE).int().argmax(1) + 1  # the one target is of the last bit
        assert batch.inputs.shape[1] == int(ends.max()) and batch.n_tokens == int(ends.sum())
        lengths += ends.tolist()
    assert np.bincount(lengths)[3:] / len(lengths) == pytest.approx([0.25] * 4, abs=0.05)
    assert task.seq_len == 4


def test_what_fills_up_changes_nothing() -> None:
    """The loss of a batch and its gradient are those of its rows, each alone."""
    task = task_of("copying", lengths_from=2, lengths_to=7, batch_size=12)
    torch.manual_seed(0)
    model = seqzoo.build("gru", vocab_size=29, dim=8, n_layers=1).double()
    whole = task.batch(0)
    task.objective(model, whole, None, progress=0)[0].backward()
    weight = model.embedding.weight
    together, weight.grad = weight.grad, None
    assert whole.n_tokens < whole.inputs.numel()
    for row, targets in zip(whole.inputs, whole.targets, strict=True):
        end = int((targets != IGNORE).nonzero().max()) + 1
        alone = whole._replace(inputs=row[None, :end], targets=targets[None, :end])
        task.objective(model, alone, None, progress=0)[0].backward()
    torch.testing.assert_close(weight.grad, together)


def test_a_limited_set_is_read_again_in_another_order() -> None:
    task = task_of("copying", examples=256, batch_size=64)

    def epoch(number: int) -> list[bytes]:
        steps = range(4 * number, 4 * number + 4)
        return [task.batch(step).inputs.numpy().tobytes() for step in steps]

    assert len(set(epoch(0))) == 4 and task.epochs(6) == 1.5
    orders = [epoch(number) for number in range(5)]
    assert all(set(order) == set(orders[0]) for order in orders)
    assert any(order != orders[0] for order in orders)
    assert task_of("copying").epochs(1000) == 0


def test_keys_change_the_hash() -> None:
    base = made("mqar").sha256
    for keys in ({"power": 1.0}, {"random_fill": False}, {"pairs": 3}, {"test_pairs": []}):
        assert made("mqar", **keys).sha256 != base
    parity, shorter = made("parity"), made("parity", lengths_from=4)
    assert shorter.sha256 != parity.sha256 and shorter.val_sha256 == parity.val_sha256
    assert made("parity", test_lengths=[64]).val_sha256 != parity.val_sha256


# ---- scores


class Knowing(nn.Module):
    """Answers each example it was told right, and whatever else with one token."""

    def __init__(self, task: ProbeTask, answer: int, told: bool) -> None:
        super().__init__()
        self.vocab_size = task.sizes()["vocab_size"]
        self.embedding = nn.Embedding(self.vocab_size, 1)
        self.answer = answer
        self.told: dict[bytes, torch.Tensor] = {}
        for split in task.splits() if told else ():
            for sizes in task.data.points(split):
                examples = task.data.held_out(split, sizes, 0, 100)
                for row, wanted in zip(*map(torch.from_numpy, examples[:2]), strict=True):
                    self.told[row.numpy().tobytes()] = wanted

    def forward(self, tokens: torch.Tensor, state: None = None) -> tuple[torch.Tensor, None]:
        default = torch.full_like(tokens[0], self.answer)
        rows = [self.told.get(row.numpy().tobytes(), default) for row in tokens]
        given = torch.stack(rows).clamp(min=0)
        return 50.0 * nn.functional.one_hot(given, self.vocab_size).float(), None


@each_case
def test_who_knows_all_scores_100(name: str, keys: dict[str, Any]) -> None:
    task = task_of(name, eval_examples=100, **keys)
    model: Any = Knowing(task, 0, told=True)
    for split in task.splits():
        found = task.evaluate(model, split, quick=False)
        assert found.pop(f"{split}/loss") == pytest.approx(0, abs=1e-6)
        assert set(found.values()) == {100.0} and f"{split}/accuracy" in found
    assert task.sample(model).count("->") == 3


@pytest.mark.parametrize(
    ("name", "keys", "answer", "chance"),
    [
        ("parity", {}, 1, 50),
        ("group", {"group": "S3"}, 4, 100 / 6),
        ("copying", {"letters": 4, "lengths_from": 15, "lengths_to": 15}, 2, 100 / 4 * 15 / 16),
        ("induction", {"letters": 10}, 3, 10),
        ("selective_copying", {"letters": 5}, 3, 20),
    ],
)
def test_who_says_one_token_scores_chance(
    name: str, keys: dict[str, Any], answer: int, chance: float
) -> None:
    task = task_of(name, eval_examples=1500, **keys)
    model: Any = Knowing(task, answer, told=False)
    found = task.evaluate(model, "val", quick=False)
    assert found["val/accuracy"] == pytest.approx(chance, abs=4)
    assert found["val/exact"] < 60
    if "val/scaled_accuracy" in found:
        assert found["val/scaled_accuracy"] == pytest.approx(0, abs=8)
    else:
        assert name not in ("parity", "group")


def test_scores_by_length_and_pairs() -> None:
    task = task_of("mqar", test_lengths=[128, 32], test_pairs=[2, 8])
    model: Any = Knowing(task, 0, told=True)
    assert {key for key in task.evaluate(model, "test", quick=True) if "_by_" in key} == {
        *(f"test/accuracy_by_length/{n:05}" for n in (32, 128)),
        *(f"test/accuracy_by_pairs/{n:05}" for n in (2, 8)),
    }
    val = task.evaluate(model, "val", quick=True)
    assert {"val/accuracy_by_length/00064", "val/accuracy_by_pairs/00004"} <= set(val)
    assert task.quick_is_less and tasks.metric("test/accuracy_by_length/00128").higher_is_better
    drawn = task.figures(model)["accuracy"]
    assert [axes.get_xlabel() for axes in drawn.axes] == ["length", "pairs"]
    assert drawn.axes[0].get_lines()[0].get_xdata().tolist() == [32, 64, 128]
    none = task_of("mqar", test_lengths=[], test_pairs=[])
    assert none.splits() == ["val"] and not any("_by_" in key for key in val_of(none))
    assert len(none.figures(Knowing(none, 0, told=True))["accuracy"].axes) == 1


def val_of(task: ProbeTask) -> dict[str, float]:
    model: Any = Knowing(task, 0, told=True)
    return task.evaluate(model, "val", quick=True)


def test_an_evaluation_reads_part_after_part(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("copying", eval_examples=250)
    torch.manual_seed(0)
    model = seqzoo.build("gru", vocab_size=29, dim=8, n_layers=1)
    at_once = task.evaluate(model, "val", quick=False)
    monkeypatch.setattr("seqzoo.tasks.probe.EVAL_LOGITS", 1)
    assert task.evaluate(model, "val", quick=False) == pytest.approx(at_once)


# ---- keys


@pytest.mark.parametrize("name", tasks.PROBES)
def test_declarations_are_those_of_the_file(name: str) -> None:
    assert set(tasks.declaration(name).keys) - {"seed"} == set(defaults("task", name)) - {"name"}
    assert set(declared(tasks.entry(name).data).keys) and name in names("task")
    assert made(name).name == name


@pytest.mark.parametrize(
    ("name", "keys", "needed"),
    [
        ("parity", {"lengths_from": 50}, "task.lengths_from=40"),
        ("mqar", {"pairs": 20}, "take 80 tokens"),
        ("mqar", {"test_pairs": [17]}, "17 pairs"),
        ("mqar", {"vocab_size": 32, "pairs": 16}, "give 34 or more"),
        ("needle", {"pairs": 33}, "there is room for 32"),
        ("needle", {"length": 8}, "there is room for 3"),
        ("selective_copying", {"length": 7}, "give 8 or more"),
        ("selective_copying", {"test_lengths": [7]}, "task.test_lengths: 7: "),
        ("induction", {"length": 2}, "give 3 or more"),
        ("modular_arithmetic", {"lengths_from": 1}, "give 2 or more"),
        ("mad", {"length": 33}, "task.length: 33: "),
        ("mad", {"test_lengths": [33]}, "task.test_lengths: 33: "),
        ("copying", {"examples": 100}, "a multiple of task.batch_size=64"),
        ("mad", {"kind": "noisy_recall", "vocab_size": 16}, "needs 20 or more"),
        ("copying", {"letters": 27}, "from 2 to 26"),
        ("group", {"group": "S6"}, "one of Z60, S3, S4, A5, S5"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, keys: dict[str, Any], needed: str) -> None:
    assert_refused(lambda: task_of(name, **keys), needed)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["model=transformer", "model.position=learned", "model.max_len=100"], "max_len=256"),
        (["trainer.max_epochs=3"], "a number of task.examples"),
        (["task.lengths_to=2"], "task.lengths_from=2"),
        (["architecture=encoder_decoder"], "give architecture=decoder_only"),
        (["task.ask=never"], "one of last, each"),
    ],
)
def test_a_request_is_refused_in_a_line(
    arguments: list[str], needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("train", "task=parity", *arguments) == 2
    said = capsys.readouterr().err
    assert needed in said and said.count("\n") == 1


@pytest.mark.parametrize("name", [each for each in names("experiment") if each[:5] == "probe"])
def test_protocols_of_papers_compose_for_any_model(name: str) -> None:
    for model in ([], ["model=gla"], ["model=rwkv7"]):
        for config in compose(parse([f"experiment={name}", *model], multirun=False), "train"):
            check_config(config)
            assert config["trainer"]["max_seconds"] is None


# ---- the command line

SMALL = [
    "model=gru",
    "model.dim=16",
    "model.n_layers=1",
    "trainer.dtype=float32",
    "trainer.max_seconds=null",
    "task.batch_size=8",
    "task.eval_examples=20",
]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *((name, []) for name in tasks.PROBES if name not in ("mad", "needle")),
        ("needle", ["task.length=64", "task.test_lengths=[128]"]),
        ("mad", ["task.kind=fuzzy_recall"]),
        ("mad", ["task.kind=memorization", "task.test_lengths=[]", "task.examples=16"]),
    ],
)
def test_every_probe_trains(
    name: str, keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    request = ["train", f"task={name}", *keys, *SMALL, "trainer.max_steps=6"]
    assert status(*request, "trainer.eval_every=3", f"hydra.run.dir={folder}") == 0
    said = capsys.readouterr().out
    assert "val/accuracy" in said and "->" in said
    summary = json.loads((folder / "summary.json").read_text())
    metrics = {key for key, value in summary.items() if key.startswith(("val/", "test/"))}
    assert {"val/accuracy", "val/exact", "val/loss"} <= metrics

    splits = ["val"] if "task.test_lengths=[]" in keys else ["val", "test"]
    assert {key.partition("/")[0] for key in metrics} == set(splits)
    for split in splits:
        assert status("eval", folder, "--split", split) == 0
        measured = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
        for key, value in measured.items():
            assert float(value) == pytest.approx(summary[key], abs=1e-3)
        assert set(measured) == {key for key in metrics if key.startswith(split)}
    assert status("eval", folder, "--path", __file__) == 2
    assert "makes its data" in capsys.readouterr().err

    assert status("train", f"resume={folder}", "trainer.max_steps=9") == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 9
    run = seqzoo.load(folder)
    assert run.tokenizer.vocab_size == len(made(name, **run.config["task"]).symbols)
    assert status("generate", folder, "--prompt", "a") == 2  # a run of a probe is for eval alone


PLUGIN = '''
"""A probe of another package: after each token, the token before it."""

from functools import partial
from pathlib import Path

import numpy as np

from seqzoo.config.plugins import Plugin
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.probes.probe import IGNORE, Examples, Probe
from seqzoo.tasks import probe_entry

plugin = Plugin(
    tasks={"before": probe_entry("before_probe:load")}, configs=Path(__file__).parent
)


def before(random, rows, *, length, letters):
    tokens = random.integers(letters, size=(rows, length))
    nothing = np.full((rows, 1), IGNORE)
    return Examples(tokens, np.concatenate((nothing, tokens[:, :-1]), 1))


@checked()
def load(existing={}, whole=False, *, letters: Count):
    return Probe(
        name="before",
        note="random letters",
        symbols=[f"t{i}" for i in range(letters)],
        make=partial(before, letters=letters),
        train=[{"length": 8}],
        test=[{"length": 16}],
    )
'''


def test_a_probe_of_another_package(tmp_path: Path) -> None:
    (tmp_path / "before_probe.py").write_text(PLUGIN)
    (tmp_path / "task").mkdir()
    keys = "letters: 4\nbatch_size: 8\nexamples: null\neval_examples: 20\n"
    (tmp_path / "task" / "before.yaml").write_text(f"# The token before.\nname: before\n{keys}")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "SEQZOO_PLUGINS": "before_probe"}
    request = [*SMALL[:-2], "task=before", "trainer.max_steps=2", "hydra.run.dir=run"]
    for arguments in (["train", *request], ["eval", "run", "--split", "test"]):
        command = [sys.executable, "-m", "seqzoo", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "test/accuracy_by_length/00016" in done.stdout


def test_a_run_is_measured_at_other_lengths(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert (
        status("train", "task=parity", *SMALL, "trainer.max_steps=2", f"hydra.run.dir={folder}")
        == 0
    )
    found = seqzoo.load(folder).evaluate("test", test_lengths=[300, 400])
    assert {"test/accuracy_by_length/00300", "test/accuracy_by_length/00400"} <= set(found)


def test_runs_are_compared_by_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("gru", "rnn"):
        request = ["task=parity", *SMALL, f"model={model}", "trainer.max_steps=2"]
        assert status("train", *request, f"hydra.run.dir={tmp_path / model}") == 0
    out = tmp_path / "out"
    assert status("compare", tmp_path / "gru", tmp_path / "rnn", "--out", out) == 0
    table = (out / "compare.md").read_text()
    assert "val/accuracy" in table and "test/accuracy by length" in table and "256" in table
    assert (out / "lengths.png").exists()


@pytest.mark.parametrize(
    "keys",
    (
        ["task=parity", "task.ask=each", "task.lengths_from=8", "task.lengths_to=8"],
        ["task=mad", "task.kind=memorization", "task.vocab_size=16", "task.length=8"],
    ),
    ids=("parity", "memorization"),
)
def test_a_small_lstm_learns(keys: list[str], tmp_path: Path) -> None:
    request = [*keys, *SMALL, "model=lstm", "model.dim=32", "task.batch_size=64", "optim.lr=0.02"]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    assert status("train", *request, "trainer.max_steps=300", folder) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val/accuracy"] > 99 and summary["test/accuracy"] > 90
