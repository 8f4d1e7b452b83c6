"""What all tests share: no network, a cache of their own, real text."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SEQZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text of 40,000 characters: a module of the standard library."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(Path(argparse.__file__).read_text()[:40_000])
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Iterable[str]], str]:
    """Writes lines into a file of a name; returns its path."""

    def write(name: str, lines: Iterable[str]) -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write
