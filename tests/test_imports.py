"""Which way imports point, and what starting up costs."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "seqzoo"
SCRIPTS = SOURCE.parents[1] / "scripts"
ORDER = [
    "errors",
    "state",
    "config",
    "report",
    "ops",
    "mixers",
    "models",
    "decoding",
    "data",
    "tasks",
    "runs",
    "training",
    "run",
    "laws",
    "exchange",
    "bench",
    "exam",
    "analysis",
    "cli",
]
FILES = sorted(SOURCE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    """The folder; `Run`, which a user holds, stands above the training that it reads back."""
    if parts[:2] in (("runs", "run.py"), ("runs", "run")):
        return "run"
    return parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """The seqzoo modules a file imports, at its head or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "seqzoo":
                found += [f"seqzoo.{alias.name}" for alias in node.names]
            else:
                found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(SOURCE)
    if room(here.parts) in ("__init__", "__main__"):
        return
    for module in imported(path):
        if module.partition(".")[0] in ("hydra", "omegaconf"):
            assert room(here.parts) == "cli", f"only cli/ knows Hydra, not {here}"
        if not module.startswith("seqzoo."):
            continue
        target = room(tuple(module.split(".")[1:]))
        assert ORDER.index(target) <= ORDER.index(room(here.parts)), f"{here} imports {module}"
        if here.parts[0] == "mixers":
            shared = module.rpartition(".")[2] in ("mlp", "delta")
            assert target != "mixers" or shared, f"{here} imports a mixer"
        if here.parts[0] == "training":
            assert target != "mixers" and module not in (
                "seqzoo.tasks.charlm",
                "seqzoo.tasks.translation",
            )


@pytest.mark.parametrize(
    "module",
    (
        "seqzoo",
        "seqzoo.config.schema",
        "seqzoo.tasks",
        "seqzoo.models.zoo",
        "seqzoo.runs.directory",
        "seqzoo.training.tables",
        "seqzoo.bench.plan",
        "seqzoo.exam.plan",
        "seqzoo.cli.main",
        "seqzoo.cli.train",
    ),
)
def test_torch_is_not_loaded_before_it_is_needed(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_what_there_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if (error.name or "seqzoo").startswith("seqzoo"):
            raise
        pytest.skip(f"{error.name} is not installed")
