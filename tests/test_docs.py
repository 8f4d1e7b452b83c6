"""The documentation: commands compose, links lead somewhere, snippets run, and the examples of
CONTRIBUTING.md work when they are followed to the letter."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from calls import status
from seqzoo.cli.checks import check_config
from seqzoo.cli.compose import compose, parse
from seqzoo.cli.main import COMMANDS, command_parser
from seqzoo.cli.parser import read_options
from seqzoo.config.moved import MOVED

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
page_by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Fence(NamedTuple):
    """A block of code, with the title in its first line and the heading above it."""

    language: str
    title: str
    heading: str
    runnable: bool
    text: str


def fences(page: Path) -> Iterator[Fence]:
    heading, before = "", ""
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if opened is None and (opened := re.match(r'\s*```(\w*)(?: title="(.*)")?$', line)):
            lines, runnable = [], before == "<!-- runnable -->"
        elif opened is None:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            before = line.strip() or before
        elif line.strip() == "```":
            yield Fence(opened[1], opened[2] or "", heading, runnable, "\n".join(lines) + "\n")
            opened, before = None, ""
        else:
            lines.append(line)


# ---- commands


def commands(page: Path) -> list[str]:
    """Every `seqzoo ...` of a page: in shell blocks, and in code within the text."""
    lines: list[str] = []
    for fence in fences(page):
        if fence.language == "sh":
            lines += fence.text.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(), flags=re.S | re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`(seqzoo [^`]+)`", prose)]
    found = [match[0] for line in lines if (match := re.search(r"(?<![\w-])seqzoo .*", line))]
    return list(dict.fromkeys(found))


def words(line: str) -> list[str]:
    """The words of the first command of a line, without comments; a name in place of MODEL."""
    line = re.split(r" (?:[&|<]|\$\w+) |;|\)\"", line.replace("MODEL", "lstm") + " ")[0]
    given = shlex.split(line, comments=True)[1:]
    return [word for word in given if not word.startswith("$") and word != "..."]


def understand(line: str) -> None:
    """Parse a command's options; compose a request and check its keys and values.

    Raises:
        UserError: as the command itself would.
    """
    name, *given = words(line)
    if name in ("COMMAND", "--help", "--version"):
        return
    assert name in COMMANDS, line
    if not given:  # its name alone, in a sentence
        return
    if name not in ("train", "bench", "exam", "info"):
        if "--help" not in given:
            command_parser(name).parse_args(given)
        return
    options = read_options(name, given)
    if name == "info":
        options.overrides = [text for text in options.overrides if "=" in text]
    overrides = parse(options.overrides, multirun=getattr(options, "multirun", False))
    for config in compose(overrides, name if name in ("bench", "exam") else "train"):
        if name in ("bench", "exam"):
            plan = import_module(f"seqzoo.{name}.plan")
            plan.make({k: v for k, v in config.items() if k != "hydra"})
        else:
            check_config(config)


COMMAND_LINES = [(p, line) for p in PAGES if p != CONTRIBUTING for line in commands(p)]


@pytest.mark.parametrize(
    ("page", "line"), COMMAND_LINES, ids=[f"{page.stem}: {line}" for page, line in COMMAND_LINES]
)
def test_every_command_is_understood(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what earlier runs left in the project's folder is not there
    understand(line)


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    from seqzoo.errors import UserError

    page = tmp_path / "page.md"
    page.write_text("A `seqzoo train model=lsmt`.\n\n```sh\nseqzoo eval RUN --beams 3 # no\n```\n")
    assert len(commands(page)) == 2
    for line in commands(page):
        with pytest.raises(UserError):
            understand(line)


@page_by_name
def test_no_key_has_moved(page: Path) -> None:
    if page.name not in ("CHANGELOG.md", "design.md"):  # which list old keys
        given = set(re.findall(r"(?<![\w.])([a-z][\w.]*)=", page.read_text()))
        assert not given & MOVED.keys()


SHORT = {
    "train": ["model.parameters=20000", "trainer.max_seconds=null", "trainer.max_steps=2"],
    "exam": ["exam.parameters=20000", "exam.steps=2", "exam.seeds=1", "exam.rates=[0.004]",
             "exam.language_seconds=2", "exam.speed_length=32", "exam.speed_rounds=1"],
}  # fmt: skip
SHORTER = {
    "train": [*SHORT["train"], "task.val_max_chars=500", "task.sample_tokens=5"],
    "exam": [*SHORT["exam"], "exam.language_seconds=0.5", "exam.speed=false", "models=[lstm]"],
}


def tutorial(folder: Path, text: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of docs/choosing.md and what they are given, each when those before it have run
    in a folder."""
    shutil.copy(text, folder / "my.txt")
    blocks = [f.text for f in fences(ROOT / "docs" / "choosing.md") if f.language == "sh"]
    names = []
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        _, name, *given = shlex.split(line)
        sweeps = folder / "runs" / "sweeps"
        yield name, [str(next(sweeps.iterdir())) if "runs/sweeps/" in g else g for g in given]
        names.append(name)
    assert set(names) == {"train", "compare", "exam"}


@pytest.mark.slow
def test_the_tutorial_runs_to_its_end(tmp_path: Path, text_file: Path) -> None:
    """Every command, with small runs."""
    for name, given in tutorial(tmp_path, text_file):
        done = subprocess.run(
            [sys.executable, "-m", "seqzoo", name, *given, *SHORT.get(name, [])],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {given}\n{done.stdout}"


def test_the_tutorial_in_short(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command in this process; exams of one model, in one ability."""
    monkeypatch.chdir(tmp_path)
    for name, given in tutorial(tmp_path, text_file):
        first = ["exam.abilities=[language]"] if name == "exam" else []  # unless the line says more
        assert status(name, *first, *given, *SHORTER.get(name, [])) == 0
    cells = [summary.parts[-3] for summary in tmp_path.glob("runs/exam/*/cells/*/*/summary.json")]
    assert sorted(cells) == ["language", "needle"]


# ---- links and snippets


@page_by_name
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        in_site = page.parent / {"contributing.md": CONTRIBUTING, "index.md": README}.get(path, "-")
        assert target.exists() or in_site.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page.name}: {link}"


@page_by_name
def test_python_snippets_compile(page: Path) -> None:
    for fence in fences(page):
        if fence.language == "python" and ":" not in fence.title:
            compile(fence.text, f"{page.name}: {fence.heading}", "exec")


SNIPPETS = [fence for page in PAGES for fence in fences(page) if fence.runnable]
SMALL = {
    '"trainer.max_seconds=60"': '"trainer.max_steps=2", "model.dim=16", "task.sample_tokens=5", '
    '"task.val_max_chars=500", f"task.path={text_file}"',
    "tokens=200": "tokens=5",
}


@pytest.mark.parametrize("fence", SNIPPETS, ids=lambda fence: fence.heading)
def test_snippets_run(
    fence: Fence, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = fence.text
    for long, short in SMALL.items():
        code = code.replace(long, short)
    exec(compile(code, fence.heading, "exec"), {"text_file": text_file})


# ---- CONTRIBUTING.md

EXAMPLES = [fence for fence in fences(CONTRIBUTING) if fence.title]


@pytest.fixture(scope="session")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which every example of CONTRIBUTING.md is added as it is written."""
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "src", house / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", house / "configs")
    for fence in EXAMPLES:
        name, _, place = fence.title.partition(": ")
        path = house / name
        if not place:
            assert not path.exists(), f"{name} exists already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.text)
        elif place == "at the end":
            path.write_text(path.read_text() + fence.text)
        else:
            path.write_text(inserted(path.read_text(), place, fence.text))
    return house


def inserted(source: str, place: str, text: str) -> str:
    """Lines put behind the line that begins with `place` and opens a bracket."""
    lines = source.splitlines(keepends=True)
    codes = [line.partition("  # ")[0].strip().removeprefix('"') for line in lines]
    opened = [code.startswith(place) and code[-1:] in ("[", "(", "{") for code in codes]
    number = opened.index(True)
    return "".join([*lines[: number + 1], text, *lines[number + 1 :]])


def run(followed: Path, code: str, *given: str) -> str:
    """Run Python in the copy; what it prints."""
    path = os.pathsep.join(map(str, (followed / "src", followed, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "SEQZOO_PLUGINS": "my_models"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *given],
        cwd=followed,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_added_trains(followed: Path) -> None:
    """All examples in two short runs; the laws of the two models; the backend's definition law."""
    code = """
import torch, seqzoo
from seqzoo import laws

small = ("model.dim=16", "model.n_layers=1", "trainer.max_steps=4", "trainer.log_every=2")
run = seqzoo.train("model=leaky", "task=sorting", "task.n_rows=200", "optim=sgd",
                   "schedule=polynomial", "logger=[tensorboard,csv]", "hook=[largest_weight]",
                   "hook.largest_weight.every=1", "hydra.run.dir=sorted", *small, quiet=True)
assert {"val/accuracy", "val/loss"} <= run.summary.keys()
assert len([x for x in run.metrics()["train/largest_weight"] if x is not None]) == 4
assert (run.folder / "scalars.csv").read_text().startswith("1,train/largest_weight,")
assert 0 < max(x for x in run.metrics()["train/lr"] if x is not None) < 0.01
run = seqzoo.train("model=running_mean", "task=charlm", "task.corpus=counting", *small,
                       "task.val_max_chars=500", "hydra.run.dir=counted", quiet=True)
assert "val/perplexity" in run.summary and run.config["task"]["corpus"] == "counting"
for name in ("leaky", "running_mean"):
    for row in laws.report([name]):
        assert row.holds, row
x = torch.randn(1, 70, 16, dtype=torch.float64)
f = laws.example("transformer")
assert "blocked" in laws.fast_forms(f, x)
assert laws.definition_law(f, x, "blocked") < 1e-9
"""
    run(followed, code)


def test_commands_of_the_examples_are_understood(followed: Path) -> None:
    lines = commands(CONTRIBUTING)
    assert len(lines) > 10
    run(
        followed,
        "import sys, test_docs\nfor line in sys.argv[1:]: test_docs.understand(line)",
        *lines,
    )


def test_the_table_counts_files_and_lines() -> None:
    rows = re.findall(r"^\| (\w+) \| .* \| (\d+) \| (\d+) \|$", CONTRIBUTING.read_text(), re.M)
    assert len(rows) == 9
    for thing, n_files, n_lines in rows:
        own = [fence for fence in EXAMPLES if fence.heading.split()[-1] == thing]
        files = {fence.title.partition(": ")[0] for fence in own}
        lines = sum(bool(line.strip()) for fence in own for line in fence.text.splitlines())
        assert (int(n_files), int(n_lines)) == (len(files), lines), thing


@pytest.mark.parametrize(
    "field",
    re.findall(
        r"`(\w+)`",
        "".join(re.findall(r"^\| \w+ \| (`[^|]*) \|.*\|.*\|$", CONTRIBUTING.read_text(), re.M)),
    ),
)
def test_fields_of_a_plugin_exist(field: str) -> None:
    from seqzoo.config.plugins import Plugin

    assert field in Plugin.__dataclass_fields__


def test_every_room_is_described() -> None:
    rooms = {path.name for path in (ROOT / "src" / "seqzoo").iterdir()}
    rooms -= {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    table = CONTRIBUTING.read_text().partition("## The packages")[2].partition("\n## ")[0]
    assert {name.rstrip("/") for name in re.findall(r"^\| `(\S+)` \|", table, re.M)} == rooms


def test_moved_keys_are_listed() -> None:
    for page in (ROOT / "docs" / "design.md", ROOT / "CHANGELOG.md"):
        table = "\n".join(re.findall(r"^ *\|.*\|$", page.read_text(), flags=re.M))
        for old, new in MOVED.items():
            if old != "model.head":  # written by the first release's runs, never typed
                assert f"`{old}`" in table and (f"`{new}`" in table or page.name[0] == "C"), old
