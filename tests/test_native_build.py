"""How the kernels in C++ are built and kept, and what happens where they cannot be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest import CaptureFixture, MonkeyPatch

from seqzoo import ops
from seqzoo.cli import main as cli
from seqzoo.ops.channel import gate
from seqzoo.ops.native import compiler
from seqzoo.ops.native.compiler import DAY, load

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
BUILD = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("compiler", sys.argv[1])
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)
compiler.SOURCES = pathlib.Path(sys.argv[2])
print(compiler.load().answer())
"""
WAIT_FOR_TWO = """
if [ "$1" != --version ]; then
  touch "$0.building.$$"
  while [ $(ls "$0".building.* | wc -l) -lt 2 ]; do sleep 0.02; done
fi
exec g++ "$@"
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    """A folder with one small kernel, which is built into an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(compiler, "SOURCES", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@needs_compiler
def test_a_build_is_kept(sources: Path, capfd: CaptureFixture[str]) -> None:
    assert load().answer() == load().answer() == 42
    assert capfd.readouterr().err.count("building kernels") == 1


@needs_compiler
def test_a_compiler_of_several_words(sources: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env 'LANG=C' g++")
    assert load().answer() == 42


@needs_compiler
def test_two_processes_build_at_once(sources: Path, tmp_path: Path) -> None:
    """Both compile, as each waits for the other; one file is left."""
    script = tmp_path / "wait.sh"
    script.write_text(WAIT_FOR_TWO)
    command = [sys.executable, "-c", BUILD, compiler.__file__, str(sources)]
    environment = {**os.environ, "CXX": f"sh {script}"}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["42\n"] * 2
    (left,) = (tmp_path / "seqzoo").iterdir()
    assert left.suffix == ".so"


@needs_compiler
def test_a_build_removes_what_nobody_uses(sources: Path, tmp_path: Path) -> None:
    load()
    (first,) = (tmp_path / "seqzoo").iterdir()
    unused, used = (first.with_name(f"kernels-{name}.so") for name in ("unused", "used"))
    ages = {first: 31, unused: 31, used: 29}
    for path, days in ages.items():
        path.touch()
        os.utime(path, (path.stat().st_mtime - days * DAY,) * 2)
    load()  # uses the first one
    (sources / "one.cpp").write_text('extern "C" int answer() { return 43; }')
    assert load().answer() == 43
    left = set((tmp_path / "seqzoo").iterdir())
    assert {first, used} < left and unused not in left and len(left) == 3


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("false", "false failed: status 1 and no message"),
        ("no-such-compiler", "CXX=no-such-compiler: no such program"),
        ("'g++", "No closing quotation"),
    ],
)
def test_a_compiler_that_fails(
    command: str, reason: str, sources: Path, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", command)
    assert load() is None
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "building" not in line)
    assert reason in line and "recurrences run in torch's slower forms" in line


@needs_compiler
def test_a_failed_build_is_tried_again_after_a_day(
    sources: Path, tmp_path: Path, capfd: CaptureFixture[str]
) -> None:
    (sources / "one.cpp").write_text("int answer() { return none; }")
    for builds in (1, 0):
        assert load() is None
        said = capfd.readouterr().err
        assert said.count("building kernels") == builds
        assert "error: 'none' was not declared" in said
    (marker,) = (tmp_path / "seqzoo").iterdir()
    assert str(marker) in said
    os.utime(marker, (marker.stat().st_mtime - DAY,) * 2)
    assert load() is None
    assert "building kernels" in capfd.readouterr().err
    (sources / "one.cpp").write_text('extern "C" int answer() { return 42; }')
    assert load().answer() == 42


def test_no_folder_for_a_build(
    sources: Path, tmp_path: Path, monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]
) -> None:
    """A folder that cannot be made, or no home; the compiler is not asked."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("CXX", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(sources / "one.cpp"))
    assert load() is None
    assert "Not a directory" in capfd.readouterr().err
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert load() is None
    said = capfd.readouterr().err
    assert "Could not determine home directory" in said and "set XDG_CACHE_HOME" in said


@needs_compiler
def test_a_library_that_cannot_be_loaded(
    sources: Path, tmp_path: Path, capfd: CaptureFixture[str]
) -> None:
    path = compiler.build()
    path.write_bytes(b"no library")
    assert load() is None
    assert f"{path}: " in capfd.readouterr().err


def test_without_kernels_everything_runs(tmp_path: Path) -> None:
    """In a process that has no compiler and no build."""
    code = (
        "import os, torch; os.environ['PATH'] = ''; os.environ.pop('CXX', None)\n"
        "import seqzoo\n"
        "from seqzoo.decoding.sampling import generate\n"
        "from seqzoo.laws import verify\n"
        "model = seqzoo.build('rwkv7', vocab_size=5, dim=16, n_layers=1)\n"
        "model(torch.zeros(1, 4, dtype=torch.long))[0].sum().backward()\n"
        "print(len(list(generate(model, torch.zeros(1, 1, dtype=torch.long), max_tokens=20))))\n"
        "assert verify(['rnn'])"
    )
    environment = {
        "XDG_CACHE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("20\n") and "All laws hold" in done.stdout
    assert done.stderr.count("no C++ compiler") == 1


def test_native_forms_without_kernels(monkeypatch: MonkeyPatch, capfd: CaptureFixture[str]) -> None:
    """Whoever asks for them is told so."""
    monkeypatch.setattr("seqzoo.ops.native.library", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", "rnn", "--backend", "native"])
    assert left.value.code == 2
    assert "--backend native: there are no kernels in C++ here" in capfd.readouterr().err
    with ops.backend("native"), pytest.raises(TypeError, match="no kernels in C.*another form"):
        gate(torch.ones(1, 2, 3), torch.ones(1, 2, 3))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(1, 2, 3, dtype=torch.float16), "no kernel for torch.float16 on this CPU"),
        (torch.ones(1, 2, 3, device="meta"), "a tensor on meta"),
    ],
    ids=["float16", "meta"],
)
def test_native_forms_of_what_kernels_do_not_take(x: torch.Tensor, reason: str) -> None:
    if compiler.load() is None:
        pytest.skip("no kernels")
    with ops.backend("native"), pytest.raises(TypeError, match=f"gate_forward: {reason}"):
        gate(x, x)
