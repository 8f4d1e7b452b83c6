"""Text to ids and back: characters, bytes, byte-level BPE, longest tokens, or whole labels. Each
vocabulary is a portable `tokenizer.json`.

The file can be read by the `tokenizers` library and everything that builds on it. Inside the
project whole corpora are encoded by NumPy where that is possible (5 million characters in 0.1 s
instead of 5 s), and decoding is the same few lines for all kinds: every id stands for some bytes.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from seqzoo.errors import UserError

Kind = Literal["char", "byte", "bpe"]
AnyKind = Kind | Literal["longest", "label"]
KINDS: tuple[str, ...] = get_args(Kind)  # that can be made of a text

# Cutting before a newline that a visible character follows changes no BPE id: the pre-tokenizer
# ends a word there anyway.
_BPE_CHUNK = re.compile(r"[\s\S]{16384,}?(?=\n\S)|[\s\S]+")


class Tokenizer:
    """One of five vocabularies around a `tokenizers.Tokenizer`.

    `char`: the characters of the training text by code point; `byte`: id = number of specials +
    byte value, so that any text can be encoded; `bpe`: byte-level BPE, which also encodes any text;
    `longest`: at every place the longest token that fits, as the RWKV World models have it;
    `label`: a whole text is one token, for the classes of labelled texts.
    Specials have the first ids. They are never found inside a text and never decoded to one.

    Attributes:
        inner: the library's tokenizer.
        kind: which of the five it is.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # a literal "<s>" in a text is three characters
        self.inner = inner
        vocab = inner.get_vocab()
        added = inner.get_added_tokens_decoder()
        self._specials = {token.content: index for index, token in added.items()}
        self.kind: AnyKind = _kind(inner, len(self._specials))
        to_bytes = str.encode if self.kind in ("char", "label") else _byte_level_bytes
        self._bytes = [b""] * (max(vocab.values(), default=-1) + 1)  # an id may stand for nothing
        for name, index in vocab.items():
            self._bytes[index] = b"" if name in self._specials else to_bytes(name)
        if self.kind == "char":
            self._table = _lookup_table(vocab, self._specials, inner.model.unk_token)
        if self.kind == "longest":
            self._ids = {token: index for index, token in enumerate(self._bytes) if token}
            sizes: list[set[int]] = [set() for _ in range(256)]
            for token in self._ids:
                sizes[token[0]].add(len(token))
            self._sizes = [sorted(found, reverse=True) for found in sizes]

    @classmethod
    def train(
        cls,
        kind: str,
        texts: Iterable[str],
        *,
        vocab_size: int = 0,
        specials: Sequence[str] = (),
        unknown: str | None = None,
    ) -> "Tokenizer":
        """A vocabulary from `texts`. Only `bpe` has a `vocab_size`, only `char` needs `unknown`.

        `unknown` is the special for characters that `texts` did not have; without it such a
        character is an error. Raises UserError for an unknown kind or too small a `vocab_size`.
        """
        if kind == "char":
            inner = _char_tokenizer(texts, specials, unknown)
        elif kind == "byte":
            inner = _byte_tokenizer(specials)
        elif kind == "bpe":
            inner = _bpe_tokenizer(texts, vocab_size, specials)
        else:
            raise UserError(f"task.tokenizer: unknown kind {kind!r}: use one of {', '.join(KINDS)}")
        inner.add_special_tokens(list(specials))
        return cls(inner)

    @classmethod
    def longest_match(cls, tokens: Mapping[int, bytes]) -> "Tokenizer":
        """A vocabulary of given tokens, of which every text takes the longest that fits, from left
        to right. Ids begin at 1; 0 is the special `<|endoftext|>`.

        Raises UserError for ids with gaps, or a byte that is no token.
        """
        missing = set(range(1, len(tokens) + 1)) - tokens.keys()
        single = {token for token in tokens.values() if len(token) == 1}
        change = "give the whole file of an RWKV World vocabulary, or a tokenizer.json"
        if missing:
            raise UserError(
                f"a vocabulary of {len(tokens)} tokens has none of id {min(missing)}: {change}"
            )
        if len(set(tokens.values())) < len(tokens):
            raise UserError(f"a vocabulary with the same token twice: {change}")
        if len(single) < 256:
            raise UserError(f"a vocabulary without {256 - len(single)} of the 256 bytes: {change}")
        letters = {
            index: "".join(_BYTE_LETTERS[b] for b in token) for index, token in tokens.items()
        }
        vocab = {"<|endoftext|>": 0, **{token: index for index, token in letters.items()}}
        inner = tokenizers.Tokenizer(
            models.WordPiece(
                vocab,
                unk_token="<|endoftext|>",
                continuing_subword_prefix="",
                max_input_chars_per_word=2**31,
            )
        )
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(["<|endoftext|>"])
        return cls(inner)

    @classmethod
    def of_labels(cls, labels: Sequence[str]) -> "Tokenizer":
        """A vocabulary of class labels, whose ids are in the order given."""
        vocab = {label: index for index, label in enumerate(labels)}
        return cls(tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="")))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer in a file made by `save`; its kind is recognised from the content.

        Raises UserError if the file is missing or is no `tokenizer.json`.
        """
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a tokenizer.json ({reason}): give a saved one") from None

    def save(self, path: str | Path) -> None:
        """Write the `tokenizer.json`."""
        self.inner.save(str(path))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, specials included."""
        return len(self._bytes)

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """The smallest of uint16 and int32 that holds every id."""
        return np.uint16 if self.vocab_size <= 65536 else np.int32

    def id(self, special: str) -> int:
        """The id of a special token."""
        return self._specials[special]

    def encode(self, text: str) -> np.ndarray:  # (T,)
        """Ids of a text, without specials; UserError for a character that `char` has not seen."""
        if self.kind == "char":
            return self._look_up(text)
        if self.kind == "label":
            return self._array([self._label(text)])
        data = _encode_unicode(text, "utf-8")
        if self.kind == "byte":
            return np.frombuffer(data, np.uint8).astype(self.dtype) + len(self._specials)
        if self.kind == "longest":
            return self._array(self._longest(data))
        encodings = self.inner.encode_batch_fast(_BPE_CHUNK.findall(text))
        return np.concatenate([np.zeros(0, self.dtype), *(self._array(e.ids) for e in encodings)])

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text: the same as `encode` one by one, in a fraction of the time."""
        if self.kind == "bpe":
            return [self._array(e.ids) for e in self.inner.encode_batch_fast(texts)]
        if self.kind in ("longest", "label"):
            return [self.encode(text) for text in texts]
        lengths = map(len, texts if self.kind == "char" else map(str.encode, texts))
        return cut(self.encode("".join(texts)), lengths)

    def piece(self, index: int) -> str:
        """What an id stands for: its text, or the name of a special."""
        names = {index: name for name, index in self._specials.items()}
        return names.get(index) or self.decode([index])

    def unknown(self, text: str) -> str:
        """The characters of a text, each once, that are read as the unknown one; `char` has it."""
        if self.kind != "char":
            return ""
        index = self._specials.get(self.inner.model.unk_token)
        letters = "".join(dict.fromkeys(text))
        return "".join(
            c for c in letters if self._table[min(ord(c), len(self._table) - 1)] == index
        )

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids, specials skipped; bytes that are no UTF-8 become U+FFFD."""
        known = [self._bytes[i] for i in np.asarray(ids).tolist() if i < len(self._bytes)]
        return b"".join(known).decode(errors="replace")

    def stream(self) -> "TextStream":
        """Decodes one id at a time: what it returns joins to what `decode` returns."""
        return TextStream(self._bytes)

    def _label(self, text: str) -> int:
        index = self.inner.token_to_id(text)
        if index is None:
            names = ", ".join(self.piece(i) for i in range(self.vocab_size))
            raise UserError(f"label {text!r} is not among the classes {names}: use one of them")
        return int(index)

    def _longest(self, data: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(data):
            sizes = self._sizes[data[start]]
            token = next(t for n in sizes if (t := data[start : start + n]) in self._ids)
            ids.append(self._ids[token])
            start += len(token)
        return ids

    def _array(self, ids: list[int]) -> np.ndarray:
        return np.array(ids, self.dtype)

    def _look_up(self, text: str) -> np.ndarray:
        codes = np.frombuffer(_encode_unicode(text, "utf-32-le"), np.uint32)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        missing = ids < 0
        if missing.any():
            offset = int(missing.argmax())
            raise UserError(
                f"character {text[offset]!r} at offset {offset} is not among the {self.vocab_size} "
                "of the char vocabulary: leave it out or train with task.tokenizer=byte"
            )
        return ids.astype(self.dtype)


class TextStream:
    """Turns ids into text as they come, a character as soon as all its bytes have come."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        """The text that this id makes certain, often one character, sometimes none."""
        known = token < len(self._token_bytes)  # an imported model may have more tokens than these
        return self._decoder.decode(self._token_bytes[token] if known else b"")

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


def cut(ids: np.ndarray, lengths: Iterable[int]) -> list[np.ndarray]:
    """Views of consecutive stretches of `ids`."""
    return [ids[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _char_tokenizer(
    texts: Iterable[str], specials: Sequence[str], unknown: str | None
) -> tokenizers.Tokenizer:
    tokens = [*specials, *sorted(set().union(*texts))]
    vocab = {token: index for index, token in enumerate(tokens)}
    # "" is in no vocabulary, so that the library too refuses a character that is not.
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unknown or ""))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner


def _byte_tokenizer(specials: Sequence[str]) -> tokenizers.Tokenizer:
    vocab = {token: index for index, token in enumerate([*specials, *_BYTE_LETTERS])}
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, specials: Sequence[str]
) -> tokenizers.Tokenizer:
    smallest = len(specials) + 256
    if vocab_size <= smallest:
        raise UserError(
            f"task.vocab_size ({vocab_size}) is too small for bpe, which starts from {smallest}: "
            f"give more than {smallest} or use task.tokenizer=byte"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=_BYTE_LETTERS,
        show_progress=False,
    )
    chunks = (chunk for text in texts for chunk in _BPE_CHUNK.findall(text))
    inner.train_from_iterator(chunks, trainer)
    return inner


def _kind(inner: tokenizers.Tokenizer, n_specials: int) -> AnyKind:
    if isinstance(inner.model, models.WordLevel):
        return "label" if inner.pre_tokenizer is None else "char"
    if isinstance(inner.model, models.WordPiece):
        return "longest"
    ids = [inner.model.token_to_id(letter) for letter in _BYTE_LETTERS]
    return "byte" if ids == list(range(n_specials, n_specials + 256)) else "bpe"


def _lookup_table(vocab: dict[str, int], specials: dict[str, int], unknown: str) -> np.ndarray:
    """Code point to id. The last entry stands for all code points above the vocabulary's."""
    characters = {ord(token): index for token, index in vocab.items() if token not in specials}
    table = np.full(max(characters, default=-1) + 2, specials.get(unknown, -1), np.int32)
    table[list(characters)] = list(characters.values())
    return table


def _encode_unicode(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {text[error.start]!r} at offset {error.start} is half a character (a lone "
            "surrogate): give valid Unicode"
        ) from None


def _byte_letters() -> list[str]:
    """GPT-2's stand-in for each byte: itself if printable, else the next one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [value for value in range(256) if value not in printable]
    return [chr(v) if v in printable else chr(256 + hidden.index(v)) for v in range(256)]


_BYTE_LETTERS = _byte_letters()
_BYTE_OF_LETTER = {letter: value for value, letter in enumerate(_BYTE_LETTERS)}


def _byte_level_bytes(token: str) -> bytes:
    return bytes(_BYTE_OF_LETTER[letter] for letter in token)
