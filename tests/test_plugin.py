"""A package outside the house (tests/plugin) adds one of each thing; and what comes of a run where
that package is missing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import seqzoo
from calls import assert_refused, status
from seqzoo import laws, ops
from seqzoo.bench import figures as bench_figures
from seqzoo.bench import plan as bench_plan
from seqzoo.cli import completion
from seqzoo.config import files, plugins, requires
from seqzoo.errors import UserError
from seqzoo.exam import plan as exam_plan

PACKAGE = Path(__file__).parent / "plugin"
ECHO = ["model=leaky", "task=echo", "optim=sign", "schedule=halving"]
SHORT = ["trainer.device=cpu", "trainer.dtype=float32", "trainer.max_seconds=null"]
FROM = "is from the plugin seqzoo_example (seqzoo-example 0.1.0), which is not in use here"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the package into, from a copy: builds leave files behind."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "--target", str(folder / "lib"), str(source)], check=True)
    return folder / "lib"


@pytest.fixture(scope="session")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made of nothing but the plugin's parts; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    observers = ["logger=[tensorboard,lines]", "hook=[weight_norm]"]
    limits = ["trainer.max_steps=60", "trainer.eval_every=5", "trainer.log_every=5"]
    given = [*ECHO, *observers, *SHORT, *limits, f"hydra.run.dir={folder}"]
    command(installed, "train", *given, where=folder.parent)
    return folder


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in this process, named in the environment."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.setenv(plugins.VARIABLE, "seqzoo_example")
    monkeypatch.setattr(plugins, "changes", plugins.changes + 1)


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    """A folder of YAML files of a user's own: a model and an experiment."""
    folder = tmp_path / "own"
    for group in ("model", "experiment"):
        (folder / group).mkdir(parents=True)
    model = "# @package _global_\n# A narrow GRU.\ndefaults:\n  - gru\nmodel:\n  dim: 24\n"
    (folder / "model" / "narrow.yaml").write_text(model)
    experiment = "# @package _global_\ndefaults:\n  - override /model: narrow\n"
    (folder / "experiment" / "brief.yaml").write_text(experiment)
    return folder


@pytest.fixture
def unchanged_environment() -> Iterator[None]:
    """What a command adds to the environment, for the processes it starts, is removed again."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def command(*arguments: object, where: Path, status: int = 0) -> str:
    """What `seqzoo` prints in a process that has a folder (the first argument) on its path."""
    path, *rest = map(str, arguments)
    return python("-m", "seqzoo", *rest, path=path, where=where, status=status)


def python(*arguments: object, path: object, where: Path, status: int = 0) -> str:
    """What a Python process prints that imports from a folder, and this very seqzoo."""
    search = f"{path}{os.pathsep}{Path(seqzoo.__file__).parents[1]}"
    environment = {**os.environ, "PYTHONPATH": search}
    given = [sys.executable, *map(str, arguments)]
    done = subprocess.run(given, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def config_of(run: Path) -> dict[str, dict[str, object]]:
    return yaml.safe_load((run / "config.yaml").read_text())


# ---- an installed package


def test_help_lists_what_a_plugin_adds(installed: Path, tmp_path: Path) -> None:
    chosen = [*ECHO, "logger=[lines]", "hook=[weight_norm]"]
    shown = command(installed, "train", "--help", *chosen, where=tmp_path)
    for choice in ("leaky", "echo", "sign", "halving", "lines", "weight_norm"):
        assert choice in shown.split("Keys of these choices")[0]
    for key in ("model.rate=0.5", "task.n_letters=4", "schedule.parts=4"):
        assert key in shown
    assert "hook.weight_norm.every=2" in shown and "logger.lines.file=lines.txt" in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seqzoo train model=le", "model=leaky"),
        ("seqzoo train task=e", "task=echo"),
        ("seqzoo train optim=s", "optim=sign"),
        ("seqzoo train schedule=h", "schedule=halving"),
        ("seqzoo train logger=[tensorboard,l", "logger=[tensorboard,lines"),
        ("seqzoo train hook=[w", "hook=[weight_norm"),
        ("seqzoo train model=leaky model.ra", "model.rate="),
        ("seqzoo bench models=[lstm,le", "models=[lstm,leaky"),
        ("seqzoo verify le", "leaky"),
    ],
)
def test_completion_offers_it(line: str, expected: str, in_use: None) -> None:
    assert expected in completion.candidates(line)


def test_completion_finds_an_installed_package(installed: Path, tmp_path: Path) -> None:
    line = "--line=seqzoo train model=le"
    assert command(installed, "completion", "bash", line, where=tmp_path) == "model=leaky\n"


def test_a_run_made_of_a_plugin(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    norms = [line["step"] for line in lines if "train/weight_norm" in line]
    assert norms == list(range(2, 61, 2))
    rates = {line["step"]: line["train/lr"] for line in lines if "train/lr" in line}
    assert rates[60] == pytest.approx(rates[5] / 8)
    logged = (trained / "lines.txt").read_text().splitlines()
    assert logged[0].startswith("2 train/weight_norm ")
    assert any(line.startswith("60 val/echoed ") for line in logged)
    assert "|" in (trained / "samples.txt").read_text()


def test_the_best_checkpoint_has_the_highest_value(trained: Path) -> None:
    best = json.loads((trained / "checkpoints" / "best.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["val/echoed"] for line in lines if "val/echoed" in line}
    assert best["value"] == max(values.values()) > min(values.values())
    assert values[best["step"]] == best["value"]


def test_a_corpus_of_a_plugin(installed: Path, tmp_path: Path) -> None:
    sizes = ["task.seq_len=16", "task.batch_size=4", "task.sample_tokens=8", "model.dim=16"]
    limits = [*SHORT, "trainer.max_steps=2", "hydra.run.dir=run"]
    given = ["task=charlm", "task.corpus=alphabet", *sizes, *limits]
    assert "the alphabet, 1,000 times" in command(installed, "train", *given, where=tmp_path)
    assert "val/loss" in command(installed, "eval", "run", where=tmp_path)
    assert list(config_of(tmp_path / "run")["requires"]) == ["task.corpus=alphabet"]


def test_verify_and_bench(installed: Path, tmp_path: Path) -> None:
    assert "All laws hold" in command(installed, "verify", "leaky", where=tmp_path)
    small = [
        "bench.lengths=[8,16]",
        "bench.parameters=null",
        "bench.rounds=1",
        "bench.seconds=0.01",
        "bench.device=cpu",
    ]
    command(installed, "bench", "models=[leaky]", *small, "hydra.run.dir=bench", where=tmp_path)
    assert "leaky" in (tmp_path / "bench" / "bench.csv").read_text()


# ---- the laws


@pytest.mark.parametrize("block", ["prenorm", "classic"])
def test_laws(block: str, in_use: None) -> None:
    f = laws.example("leaky", block=block)
    x = torch.randn(3, 65, 16, dtype=torch.float64)
    assert laws.chunk_law(f, x, [1, 7, 40]) < 1e-9
    assert laws.causality(f, x, 30) == 0
    assert laws.empty_state(f, x) < 1e-9
    assert laws.purity(f, x) == 0
    assert laws.batch_first(f, x) < 1e-9
    assert laws.precision(laws.example("leaky", torch.float32, block=block), x.float()) == 0
    assert laws.padding(f, x, [65, 1, 20]) < 1e-9
    assert laws.bounded_state(f, x) == 0


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 65])
@pytest.mark.parametrize("model", ["leaky", "mingru"])
def test_a_backend_equals_the_definition(model: str, T: int, in_use: None) -> None:
    f = laws.example(model)
    x = torch.randn(3, T, 16, dtype=torch.float64)
    assert "cumulative" in laws.fast_forms(f, x)
    with ops.backend("cumulative"), ops.recording() as forms:
        assert laws.definition_law(f, x, "cumulative") < 1e-9
        f(x)
    assert "linear_scan cumulative" in forms


def test_a_backend_is_gone_with_its_plugin() -> None:
    with pytest.raises(ValueError, match="no backend 'cumulative'"), ops.backend("cumulative"):
        pass


# ---- without installing


def test_a_folder_on_the_path_is_named(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE / "seqzoo_example", tmp_path / "lib" / "seqzoo_example")
    given = [*ECHO, *SHORT, "trainer.max_steps=2", "hydra.run.dir=run"]
    lib = tmp_path / "lib"
    assert "no such model" in command(lib, "train", "model=leaky", where=tmp_path, status=2)
    files_alone = ["train", f"--config-dir={lib / 'seqzoo_example/configs'}", "model=leaky"]
    refused = command(lib, *files_alone, where=tmp_path, status=2)
    assert "leaky.yaml is there" in refused and "add plugins=[MODULE]" in refused
    command(lib, "train", "plugins=[seqzoo_example]", *given, where=tmp_path)
    assert config_of(tmp_path / "run")["requires"]["model=leaky"] == "seqzoo_example"
    again = ["train", "resume=run", "plugins=[seqzoo_example]", "trainer.max_steps=3"]
    assert "3 steps" in command(lib, *again, where=tmp_path)
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    recipe = (
        "# @package _global_\ndefaults:\n  - override /model: leaky\nplugins: [seqzoo_example]\n"
    )
    (tmp_path / "own" / "experiment" / "recipe.yaml").write_text(recipe)
    named = ["train", "--config-dir", "own", "experiment=recipe", "--cfg", "job"]
    assert "rate: 0.5" in command(lib, *named, where=tmp_path)
    assert "name its module in SEQZOO_PLUGINS" in command(
        lib, "eval", "run", where=tmp_path, status=2
    )


@pytest.mark.parametrize("how", ["--config-dir", "hydra.searchpath"])
def test_yaml_files_of_a_users_own(
    how: str,
    own_files: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unchanged_environment: None,
) -> None:
    monkeypatch.chdir(own_files.parent)
    named = f"hydra.searchpath=[file://{own_files}]" if "." in how else "--config-dir=own"
    assert completion.candidates(f"seqzoo train {named} model=na") == ["model=narrow"]
    assert completion.candidates(f"seqzoo bench {named} models=[gru,na") == ["models=[gru,narrow"]
    assert completion.candidates(f"seqzoo train {named} experiment=br") == ["experiment=brief"]
    assert "model.dim=" in completion.candidates(f"seqzoo train {named} model=narrow model.d")
    os.environ.pop(files.VARIABLE)
    assert not completion.candidates("seqzoo train model=na")
    for arguments in (["--help", "model=narrow"], ["experiment=brief", "--cfg", "job"]):
        os.environ.pop(files.VARIABLE, None)
        assert status("train", named, *arguments) == 0
        shown = capsys.readouterr().out
        assert ("narrow" in shown and "model.dim=24" in shown) or "dim: 24" in shown
    sizes = ["task.seq_len=16", "task.batch_size=4", "task.sample_tokens=8"]
    limits = [*SHORT, "trainer.max_steps=1", "hydra.run.dir=run"]
    given = ["experiment=brief", f"task.path={text_file}", *sizes, *limits]
    assert status("train", named, *given) == 0
    assert config_of(Path("run"))["model"]["dim"] == 24


def test_one_family_in_two_settings(
    own_files: Path, tmp_path: Path, unchanged_environment: None
) -> None:
    """Two rows of an exam and of its bench; the processes of its cells find the file too."""
    folder = tmp_path / "exam"
    (own_files / "model" / "negative.yaml").write_text(
        "# @package _global_\ndefaults:\n  - deltanet\nmodel:\n  beta_max: 2.0\n"
    )
    keys = ["exam.abilities=[parity]", "exam.steps=1", "exam.seeds=1", "exam.rates=[0.01]"]
    keys += ["exam.parameters=4000", "exam.speed_length=16", "exam.speed_rounds=1"]
    keys += ["model.n_layers=1", f"--config-dir={own_files}", f"hydra.run.dir={folder}"]
    assert status("exam", "models=[deltanet,negative]", *keys) == 0
    found = json.loads((folder / "exam.json").read_text())
    assert found["models"] == {"deltanet": ["deltanet"], "negative": ["deltanet"]}
    assert [row["model"] for row in found["scores"]] == ["deltanet"] * 2 + ["negative"] * 2
    for name, largest in (("deltanet", 1.0), ("negative", 2.0)):
        (cell,) = (folder / "cells/parity").glob(f"{name}_*/config.yaml")
        assert config_of(cell.parent)["model"]["beta_max"] == largest
    bench = json.loads((folder / "bench/bench.json").read_text())
    settings = [about["keys"] for about in bench["models"].values()]
    assert [keys["name"] for keys in settings] == ["deltanet", "deltanet"]
    assert [keys["beta_max"] for keys in settings] == [1.0, 2.0]
    assert list(bench["models"]) == ["deltanet", "negative"]
    (panel, *_) = bench_figures.figure(bench, bench_figures.PANELS).axes
    first, second = (curve[0].get_color() for curve in panel.containers)
    assert first != second


@pytest.mark.parametrize(
    ("content", "needed"),
    [
        ("dim: 24", ("odd.yaml", "no model.name in it", "defaults: [FAMILY]")),
        ("name: gruu", ("model=gruu", "did you mean 'gru'?")),
        ("name: odd", ("model=odd", "odd.yaml is there, but no plugin in use")),
        ("name: gru\ndim: 24", ("missing: give it, such as",)),
        ("defaults: [gru]\nparameters: 9", ("odd.yaml", "model.parameters=9", ".parameters=9")),
    ],
)
def test_a_file_that_is_no_row(
    content: str, needed: tuple[str, ...], own_files: Path, unchanged_environment: None
) -> None:
    (own_files / "model" / "odd.yaml").write_text(f"{content}\n")
    files.add_folder(own_files)
    for make, section in ((bench_plan.make, "bench"), (exam_plan.make, "exam")):
        given = {"models": ["odd"], "model": {}, section: {"parameters": None}}
        assert_refused(lambda make=make, given=given: make(given), *needed)


# ---- where the plugin of a run is missing


def test_a_run_records_its_plugin(trained: Path) -> None:
    used = [*ECHO, "logger=lines", "hook=weight_norm"]
    recorded = config_of(trained)["requires"]
    assert recorded == dict.fromkeys(used, "seqzoo_example (seqzoo-example 0.1.0)")
    described = json.loads((trained / "model" / "config.json").read_text())
    assert described["run"]["requires"] == recorded


@pytest.mark.parametrize(
    "arguments",
    [["eval"], ["generate"], ["info"], ["compare"], ["inspect"], ["train", "resume="]],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_plugin_is_named(
    arguments: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *before, last = arguments
    given = [*before, f"{last}{trained}"] if before else [last, str(trained)]
    assert status(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"model=leaky {FROM}: install its package" in line


def test_a_missing_plugin_is_named_in_python(trained: Path) -> None:
    for folder in (trained, trained / "model"):
        with pytest.raises(UserError, match="model=leaky is from the plugin seqzoo_example"):
            seqzoo.load(folder)


def test_only_what_is_needed_has_to_be_here(in_use: None, trained: Path) -> None:
    config = config_of(trained)
    config["optim"]["name"] = "gone"
    config["requires"]["optim=gone"] = "another_plugin"
    requires.check_requirements(config, trained, "model", "task")
    with pytest.raises(UserError, match="optim=gone is from the plugin another_plugin"):
        requires.check_requirements(config, trained)


def test_no_module_is_imported_that_only_a_run_names(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged_environment: None,
) -> None:
    """A run directory may come from anyone: to load, evaluate or resume it runs no code of it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "side_effect.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    folder = tmp_path / "run"
    sizes = ["task.seq_len=16", "task.batch_size=4", "task.sample_tokens=8", "model.dim=16"]
    limits = [*SHORT, "trainer.max_steps=1", f"hydra.run.dir={folder}"]
    run = seqzoo.train("model=gru", f"task.path={text_file}", *sizes, *limits, quiet=True)
    named = {
        "plugins": ["side_effect"],
        "requires": {"model=gru": "side_effect", "x": "side_effect"},
    }
    run.directory.write_config({**run.config, **named})
    described = json.loads((folder / "model" / "config.json").read_text())
    described["run"] |= named
    (folder / "model" / "config.json").write_text(json.dumps(described))

    for each in (folder, folder / "model"):
        seqzoo.load(each).generate("The ", tokens=2)
    seqzoo.load(folder).evaluate()
    seqzoo.train(f"resume={folder}", "trainer.max_steps=2", quiet=True)
    for arguments in (
        ["eval", str(folder)],
        ["info", str(folder)],
        ["compare", str(folder), f"--out={tmp_path / 'compared'}"],
        ["train", f"resume={folder}", "trainer.max_steps=3"],
    ):
        assert status(*arguments) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3
    assert "side_effect" not in sys.modules
    assert "requires" not in config_of(folder)


# ---- a script or a notebook


def test_a_script_is_a_plugin(tmp_path: Path) -> None:
    """Its classes have no file that could be read, and its child processes know nothing of it."""
    shutil.copytree(PACKAGE / "seqzoo_example", tmp_path / "seqzoo_example")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, seqzoo\n"
        "from seqzoo.config import plugins\n"
        "from seqzoo_example import plugin\n"
        "plugins.use(['__main__'])\n"
        "model = seqzoo.build('leaky', vocab_size=5)\n"
        "print(plugins.origin('models', 'leaky'), plugins.described('__main__'))\n"
        "assert plugins.VARIABLE not in os.environ\n"
    )
    printed = python(script, path=tmp_path, where=tmp_path)
    assert printed == "__main__ __main__ (script.py)\n"
