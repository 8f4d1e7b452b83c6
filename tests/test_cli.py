"""The command line: what it refuses and how, sweeps, going on with runs, tab completion."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from seqzoo import UserError, load
from seqzoo.cli import completion
from seqzoo.cli import main as cli
from seqzoo.cli.launch import closing_lines, next_commands
from seqzoo.config import files
from seqzoo.ops.native import library

SMALL = [
    "task.path=text.txt",
    "task.batch_size=4",
    "task.seq_len=16",
    "task.sample_tokens=10",
    "model.dim=16",
    "model.n_layers=1",
    "trainer.max_steps=4",
    "trainer.dtype=float32",
    "trainer.device=cpu",
]
Seqzoo = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files, good and bad."""
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path)
    return tmp_path


@pytest.fixture
def seqzoo() -> Seqzoo:
    """A command in this process; its exit status."""

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert isinstance(left.value.code, int)
        return left.value.code

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs/a (charlm, finished at step 4), runs/b (translation) and c (classification) are;
    not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    _fill(folder)
    common = [text for text in SMALL if not text.startswith("task.")]
    pairs = ["task=translation", "task.source=en.txt", "task.target=fr.txt", "task.max_len=80"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        labels = ["task=classification", "task.path=labelled.tsv", "architecture=classifier"]
        for given in (
            [*SMALL, "hydra.run.dir=runs/a"],
            [*common, *pairs, "hydra.run.dir=runs/b"],
            [*common, *labels, "hydra.run.dir=c"],
        ):
            with pytest.raises(SystemExit) as left:
                cli.main(["train", *given])
            assert left.value.code == 0
    return folder


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `trained`, as the working directory."""
    monkeypatch.chdir(trained)
    return trained


def _fill(folder: Path) -> None:
    shutil.copy(textwrap.__file__, folder / "text.txt")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("hello, world")
    (folder / "latin1.txt").write_bytes(b"caf\xe9 au lait\n")
    (folder / "source.txt").write_text("a\nb\n")
    (folder / "target.txt").write_text("a\n")
    english, french = ([f"{word} {i}\n" for i in range(60)] for word in ("number", "nombre"))
    (folder / "en.txt").write_text("".join(english))
    (folder / "fr.txt").write_text("".join(french))
    pairs = (f"{e.strip()}\t{f}" for e, f in zip(english, french, strict=True))
    (folder / "pairs.tsv").write_text("".join(pairs))
    labelled = (f"{i % 2}\t{'odd' if i % 2 else 'even'} {i}\n" for i in range(60))
    (folder / "labelled.tsv").write_text("".join(labelled))
    (folder / "bench").mkdir()
    (folder / "bench" / "bench.json").write_text("{}")


def _config(run: Path) -> dict[str, dict[str, object]]:
    return yaml.safe_load((run / "config.yaml").read_text())


# ---- refusals

BAD = [  # (request, what the line must say)
    ("train model=lstn", "did you mean 'lstm'?"),
    ("train task=charml", "did you mean 'charlm'?"),
    ("train experiment=nope", "experiment=nope"),
    ("train experiment=1", "experiment=1: no such experiment; allowed: multi30k"),
    ("train modle=gru", "did you mean 'model'?"),
    ("train lr=0.1", "did you mean 'optim.lr'?"),
    ("train trainer.lr=0.1", "trainer.lr is now optim.lr: give optim.lr=0.1"),
    ("train trainer.beta2=0.98", "give optim.betas=[0.9,0.99]"),
    ("train head=encoder_decoder", "give architecture=encoder_decoder"),
    ("train model.bridge=state", "give architecture.bridge=state"),
    ("train optim=adam", "did you mean 'adamw'?"),
    ("train schedule=wds", "did you mean 'wsd'?"),
    ("train logger=tensorbord", "did you mean 'tensorboard'?"),
    ("train architecture=classifier", "give architecture=decoder_only"),
    ("train --config-dir missing", "--config-dir missing: no such folder"),
    ("train hydra.searchpath=[file:///nope]", "hydra.searchpath /nope: no such folder"),
    ("train hydra/launcher=foo", "allowed: basic, joblib"),
    ("train architecture.bridge=state", "one of architecture=encoder_decoder"),
    ("train hook.early_stopping.patience=2", "add hook=[early_stopping]"),
    ("train logger.wandb.project=mine", "add logger=[wandb]"),
    ("train logger=null", "logger=null: give a list of names; logger=[] for none"),
    ("train ~foo", "~foo: there is none to remove: see `seqzoo train --cfg all`"),
    ("train ~model", "~model: every run has one model: leave it out, or give a name"),
    ("train hook=[1]", "hook=[1]: give a list of names; hook=[] for none"),
    ("train model=1", "model=1: every run has one model: give a name"),
    ("train hydra.foo=1", "hydra.foo: no such key: see `seqzoo train --cfg all`"),
    ("train hydra.run.dir=", "is empty: give a folder"),
    ("train -m hydra.sweep.dir= model=rnn,gru", "is empty: give a folder"),
    ("train -m --cfg hydra", "leave -m out, or give --cfg job"),
    ("train -p model", "--package: only works with --cfg: add --cfg job"),
    ("train -m --cfg job -p model", "--package model: leave it out with -m"),
    ("train --cfg job --info", "--info with --cfg job: give one of them"),
    ("bench -m --info", "-m with --info or --cfg hydra|all: leave -m out"),
    ("bench -m --cfg job -p model", "--package model: leave it out with -m"),
    ("exam -m --cfg job", "-m: an exam is a sweep itself: leave it out"),
    ("exam -p model", "--package: only works with --cfg: add --cfg job"),
    ("info /nope", "/nope: no run directory"),
    ("info bench model=gru", "a run takes no overrides: give bench alone"),
    ("train plugins=[no_such_module]", "plugins=[no_such_module]: cannot be imported"),
    ("train trainer.max_step=3", "did you mean 'max_steps'?"),
    ("train model=transformer model.n_head=2", "did you mean 'n_heads'?"),
    ("train model=transformer model.n_heads=3", "try model.dim=126 or model.n_heads="),
    ("train +model.foo=1", "model.foo: no such key"),
    ("train ++model.dim.foo=1", "model.dim"),
    ("train model.name=rwkv7", "missing: give it, such as"),
    ("train model=null", "model=null"),
    ("train model=", "model="),
    ("train model.name=[1]", "model: give a name"),
    ("train model.dim=-1", "model.dim=-1: give a whole number from 1 up"),
    ("train model.parameters=many", "model.parameters=many: give a whole number from 1 up"),
    ("train model.parameters=0", "model.parameters=0: give a whole number from 1 up, or null"),
    ("train model.dim=64 model.parameters=9999", "leave model.dim out"),
    ("train -m model.dim=64 model=gru,rnn model.parameters=9999", "leave model.dim out"),
    ("train model.dim=wide", "model.dim=wide: give a whole number from 1 up"),
    ("train model.dim=64.0", "a whole number from 1 up"),
    ("train model.dim=null", "model.dim=null"),
    ("train model.dropout=1.5", "from 0 to 0.95"),
    ("train optim.lr=-0.1", "optim.lr=-0.1"),
    ("train optim.lr=nan", "optim.lr=nan"),
    ("train optim.lr=inf", "optim.lr=inf"),
    ("train optim.lr=fast", "optim.lr=fast: give a number"),
    ("train trainer.max_steps=many", "trainer.max_steps=many: give a whole number"),
    ("train trainer.max_steps=2.5", "trainer.max_steps=2.5: give a whole number"),
    ("train trainer.max_seconds=nan", "trainer.max_seconds=nan"),
    ("train trainer.max_seconds=null", "trainer: no end"),
    ("train trainer.dtype=float16", "auto, float32, bfloat16"),
    ("train trainer.device=foo", "trainer.device=foo"),
    ("train trainer.compile=perhaps", "true or false"),
    ("train task.path=5", "task.path=5"),
    ("train task.path=text.txt task.corpus=python", "task.corpus=python, and files too"),
    ("train task.carry=maybe", "auto, true, false"),
    ("train task.tokenizer=words", "char, byte, bpe"),
    ("train task.corpus=shakespear", "did you mean 'shakespeare'?"),
    ("train task.path=${nope}", "nope"),
    ("train word", "word: not KEY=VALUE"),
    ("train model=rnn,gru", "add -m"),
    (
        "train trainer.seed=1..3",
        "trainer.seed=1..3: several values: add -m to run with each of them\n",
    ),
    ("train -m trainer.seed=3..1", "give FIRST..LAST, such as trainer.seed=1..5"),
    ("train -m trainer.seed=1..x", "give FIRST..LAST"),
    ("train -m trainer.seed=1..99999", "at most 1,000 seeds"),
    ("train -m model=rnn,gur", "did you mean 'gru'?"),
    ("train -m task.path=text.txt,missing.txt", "missing.txt"),
    ("train --fast", "--fast"),
    ("train --cfg everything", "everything"),
    ("train task.path=empty.txt", "empty.txt is empty"),
    ("train task.path=short.txt", "task.seq_len=64 needs more"),
    ("train task.path=text.txt task.val_max_chars=1", "1 tokens to measure on"),
    ("train task.path=missing.txt", "no such file: missing.txt"),
    ("train task.path=~/missing(1)=é.txt", "missing(1)=é.txt"),
    ("train hydra.run.dir=/proc/run", "cannot write in"),
    ("train task.path=latin1.txt", "at byte 3", "task.encoding_errors=replace"),
    ("train task=translation task.source=source.txt task.target=target.txt", "has 2", "has 1"),
    ("train hydra.run.dir=text.txt/run", "cannot write in", "hydra.run.dir"),
    ("train -m hydra.sweep.dir=text.txt/run model=rnn,gru", "cannot write in"),
    ("train hydra.run.dri=run", "hydra.run.dri"),
    ("train resume=missing", "missing: no run directory"),
    ("train resume=runs/a -m", "leave -m out"),
    ("bench models=lstn", "did you mean 'lstm'?"),
    ("bench models=[lstm,gur]", "did you mean 'gru'?"),
    ("bench model=lstm", "give models=lstm"),
    ("bench model.parameters=5", "in a bench it is bench.parameters=5"),
    ("bench model.dim=64", "give bench.parameters=null"),
    ("bench model.n_head=2", "did you mean 'n_heads'?"),
    ("bench bench.length=64", "did you mean 'lengths'?"),
    ("bench bench.lengths=64-128", "give FIRST..LAST"),
    ("bench bench.modes=[decoding]", "train, prefill, decode"),
    ("bench bench.tokens=64", "try bench.tokens=8192"),
    ("bench bench.parameters=0", "bench.parameters=0"),
    ("bench bench.device=foo", "bench.device=foo"),
    ("bench models=transformer model.position=learned", "try model.max_len=8192"),
    ("exam model=lstm", "give models=lstm"),
    ("exam exam.sed=1 --cfg job", "did you mean 'speed'?"),
    ("exam exam.abilities=[recal] --info", "did you mean 'recall'?"),
    ("compare missing", "missing: no run in it"),
    ("compare bench bench --out X", "--out X: only for training runs", "leave --out out"),
    ("inspect missing", "missing: no run directory"),
    ("info model=lstn", "did you mean 'lstm'?"),
    ("generate missing", "missing: no run directory"),
    ("eval missing", "missing: no run directory"),
    ("eval missing --path missing.txt", "--path missing.txt: no such file"),
    ("translate missing", "missing: no run directory"),
    ("generate", "RUN"),
    ("generate runs --tokens 0", "--tokens: '0'"),
    ("generate runs --temperature nan", "--temperature: 'nan'"),
    ("generate runs --top-p 2", "--top-p: '2'"),
    ("generate runs --weights int4", "--weights", "'float32', 'bfloat16', 'int8'"),
    ("eval runs --split all", "'val', 'test'"),
    ("generat runs", "did you mean 'generate'?"),
    ("--fast", "--fast"),
    ("verify model=lstn", "seqzoo: model=lstn", "did you mean 'lstm'?"),
    ("dashboard missing", "missing: no TensorBoard logs"),
    ("completion fish", "'bash', 'zsh'"),
]


@pytest.mark.parametrize(("request_", "said"), [(bad[0], bad[1:]) for bad in BAD])
def test_refusal_is_one_line(
    place: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
    request_: str,
    said: tuple[str, ...],
) -> None:
    before = sorted(place.rglob("*"))
    assert seqzoo(*request_.split()) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("seqzoo: ") and output.err.count("\n") == 1, output.err
    assert all(text in output.err for text in said), output.err
    assert sorted(place.rglob("*")) == before


def test_refusals_do_not_load_torch(place: Path) -> None:
    program = """if True:
        import json, sys
        from seqzoo.cli.main import main
        for request in json.load(sys.stdin):
            try:
                main(request.split())
            except SystemExit as left:
                assert left.code == 2, request
            assert "torch" not in sys.modules, request
        """
    requests = json.dumps([bad[0] for bad in BAD])
    subprocess.run([sys.executable, "-c", program], input=requests, text=True, check=True)


@pytest.mark.parametrize("device", ["cuda:99", "foo"])
@pytest.mark.parametrize("command", ["generate runs/a", "eval runs/a", "translate runs/b"])
def test_device_that_is_not_there(
    in_trained: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
    command: str,
    device: str,
) -> None:
    assert seqzoo(*command.split(), "--device", device) == 2
    assert capfd.readouterr().err.count("\n") == 1


# ---- help


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help(seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert seqzoo(*arguments) == 0
    assert "seqzoo train model=lstm" in capfd.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert seqzoo(command, "--help") == 0
    out = capfd.readouterr().out
    assert f"seqzoo {command}" in out
    assert max(map(len, out.splitlines())) < 120


@pytest.mark.parametrize("order", [["--help", "model=transformer"], ["model=transformer", "-h"]])
def test_help_of_train_has_every_key(
    seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str], order: list[str]
) -> None:
    assert seqzoo("train", *order) == 0
    out = capfd.readouterr().out
    for text in (
        "model.n_heads=4",
        "task.seq_len=",
        "trainer.max_steps=null",
        "charlm, classification, copying",
    ):
        assert text in out


def test_version(seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]) -> None:
    assert seqzoo("--version") == 0
    assert capfd.readouterr().out.startswith("seqzoo 0.")


def test_cfg_prints_and_leaves(
    place: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]
) -> None:
    assert seqzoo("train", "model=gru", "--cfg", "job", *SMALL) == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["model"]["name"] == "gru" and printed["model"]["dim"] == 16
    assert seqzoo("train", "-m", "model=gru,rnn", "--cfg", "job", *SMALL) == 0
    printed = yaml.safe_load_all(capfd.readouterr().out)
    assert [config["model"]["name"] for config in printed] == ["gru", "rnn"]
    assert not (place / "runs").exists()


# ---- sweeps


def test_sweep_in_any_order(place: Path, seqzoo: Seqzoo) -> None:
    assert seqzoo("train", "model=gru", "-m", *SMALL, "task.seq_len=8,16") == 0
    runs = sorted(place.glob("runs/sweeps/*/*/config.yaml"))
    assert [run.parent.name for run in runs] == ["0_charlm_gru", "1_charlm_gru"]
    assert [_config(run.parent)["task"]["seq_len"] for run in runs] == [8, 16]


def test_sweep_goes_on_after_a_failure(
    place: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from seqzoo.training import loop

    train = loop.train

    def fail_once(model: object, *more: object, **named: object) -> object:
        if more[1]["model"]["name"] == "gru":  # type: ignore[index]
            raise FloatingPointError("the loss is nan")
        return train(model, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train", fail_once)
    assert seqzoo("train", "-m", "model=rnn,gru,lstm", *SMALL) == 1
    errors = capfd.readouterr().err.splitlines()
    assert errors[0] == "seqzoo: the loss is nan"
    assert errors[-1].startswith("seqzoo: 1 of 3 runs failed: see runs/sweeps/")
    assert errors[-1].endswith("/1_charlm_gru")
    status = [
        json.loads(path.read_text())["status"]
        for path in sorted(place.glob("runs/sweeps/*/*/summary.json"))
    ]
    assert status == ["finished", "failed", "finished"]


def test_failure_of_the_program_shows_its_traceback(
    place: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("seqzoo.training.loop.train", fail)
    assert seqzoo("train", *SMALL, "hydra.run.dir=run") == 1
    assert "RuntimeError: a defect" in capfd.readouterr().err
    assert json.loads((place / "run/summary.json").read_text())["status"] == "failed"


def test_a_batch_too_large_for_memory_is_one_line(
    place: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]
) -> None:
    assert seqzoo("train", *SMALL, f"task.batch_size={10**15}", "hydra.run.dir=run") == 2
    said = "seqzoo: out of memory: lower task.batch_size=1000000000000000 or model.dim\n"
    assert capfd.readouterr().err == said
    assert json.loads((place / "run/summary.json").read_text())["status"] == "failed"


def test_training_goes_on_when_the_reader_of_its_output_leaves(place: Path) -> None:
    command = [sys.executable, "-m", "seqzoo", "train", *SMALL, "hydra.run.dir=run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert b"Error" not in process.stderr.read()
    assert process.returncode == 0
    assert json.loads((place / "run/summary.json").read_text())["status"] == "finished"


def test_two_runs_of_one_directory(
    place: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]
) -> None:
    for told in (False, True):
        assert seqzoo("train", *SMALL, "hydra.run.dir=runs/same") == 0
        line = "runs/same: taken by an earlier run: runs/same_2 is used\n"
        assert (line in capfd.readouterr().out) == told
    assert (place / "runs/same/summary.json").exists()
    assert (place / "runs/same_2/summary.json").exists()


# ---- going on


def test_resume_extends(
    trained: Path, place: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", "runs", symlinks=True)
    before = _config(Path("runs/a"))
    assert seqzoo("train", "resume=runs/a") == 2
    error = capfd.readouterr().err
    assert "trainer.max_steps=4 was reached at step 4" in error and error.count("\n") == 1

    assert seqzoo("train", "trainer.max_steps=6", "resume=runs/a") == 0
    assert json.loads(Path("runs/a/summary.json").read_text())["steps"] == 6
    after = _config(Path("runs/a"))
    assert after["trainer"].pop("max_steps") == 6 and before["trainer"].pop("max_steps") == 4
    assert after == before


@pytest.mark.parametrize(
    "given", ["model.dim=32", "model=gru", "optim.lr=0.5", "trainer.foo=1", "task.seq_len=8"]
)
def test_resume_refuses(
    in_trained: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
    given: str,
) -> None:
    assert seqzoo("train", "resume=runs/a", given) == 2
    error = capfd.readouterr().err
    assert given.partition("=")[0] in error and error.count("\n") == 1


def test_resume_auto(place: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]) -> None:
    run = "hydra.run.dir=runs/charlm/lstm/first"
    assert seqzoo("train", *SMALL, run, "resume=auto") == 0
    assert "nothing unfinished" in capfd.readouterr().out
    path = place / "runs/charlm/lstm/first/summary.json"
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    assert seqzoo("train", "resume=auto", "trainer.max_steps=6") == 0
    assert "resuming runs/charlm/lstm/first" in capfd.readouterr().out
    assert json.loads(path.read_text())["steps"] == 6

    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    assert seqzoo("train", *SMALL, "trainer.max_steps=7", run, "resume=auto") == 0
    assert json.loads(path.read_text())["steps"] == 7
    assert len(list(place.glob("runs/charlm/lstm/*"))) == 1


# ---- commands on a run


def test_info_of_a_run(trained: Path, seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]) -> None:
    assert seqzoo("info", str(trained / "runs/a")) == 0
    assert "dim 16" in capfd.readouterr().out


def test_a_file_name_is_taken_as_it_is(place: Path, seqzoo: Seqzoo) -> None:
    (place / "it's (a) text=é.txt").write_text((place / "text.txt").read_text())
    path = "task.path=it's (a) text=é.txt"
    assert seqzoo("train", *SMALL[1:], path, "hydra.run.dir=run") == 0
    assert _config(Path("run"))["task"]["path"] == "it's (a) text=é.txt"


def test_generate_and_eval(
    in_trained: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts, kernels = [], library() is not None
    for checkpoint in ("best", "last"):
        given = ["--tokens", "20", "--seed", "1", "--checkpoint", checkpoint]
        assert seqzoo("generate", "runs/a", "--prompt", "def ", *given) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("def ")  # one checkpoint is both
    given = ["--tokens", "5", "--seed", "1", "--weights", "int8"]
    assert seqzoo("generate", "runs/a", "--prompt", "def ", *given) == (0 if kernels else 2)
    out, error = capfd.readouterr()
    assert out.startswith("def ") if kernels else "weights=int8: it needs the kernels" in error
    assert seqzoo("eval", "runs/a") == 0
    own = capfd.readouterr().out
    assert own.startswith("val/loss\t")
    assert seqzoo("eval", "runs/a", "--path", "text.txt") == 0
    assert capfd.readouterr().out not in ("", own)
    assert seqzoo("eval", "runs/a", "--split", "test") == 2
    assert "--split test" in capfd.readouterr().err
    with pytest.raises(UserError, match="tokens=-1: give a whole number from 1 up"):
        load("runs/a").generate("def ", tokens=-1)
    with pytest.raises(UserError, match="weights=int4: no such weights.*bfloat16, float32, int8"):
        load("runs/a").generate("def ", tokens=5, weights="int4")


def test_translate(
    in_trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import io

    assert seqzoo("translate", "runs/b", "number 1", "number 2", "--beam", "3") == 0
    assert len(capfd.readouterr().out.splitlines()) == 2
    assert seqzoo("translate", "runs/b", "number 1", "number 2") == 0
    given = capfd.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("number 1\nnumber 2\n"))
    assert seqzoo("translate", "runs/b") == 0
    assert capfd.readouterr().out == given
    assert seqzoo("eval", "runs/b", "--path", "pairs.tsv") == 0  # though it learnt from two files
    assert "val/exact\t" in capfd.readouterr().out


def test_classify_answers_every_line(
    in_trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import io

    for lines in ("odd 1\n\neven 2\n", "\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert seqzoo("classify", "c") == 0
        answers = capfd.readouterr().out.splitlines()
        assert [answer.split("\t")[2] for answer in answers] == lines.splitlines()
    assert answers == ["\t0.0 %\t"]


def test_commands_name_the_right_one(
    in_trained: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert seqzoo("translate", "runs/a", "one") == 2
    assert "use seqzoo generate" in capfd.readouterr().err
    assert seqzoo("generate", "runs/b") == 2
    assert "use seqzoo translate" in capfd.readouterr().err
    assert seqzoo("exam", "models=[lstm]", "hydra.run.dir=runs/a") == 2
    assert "hydra.run.dir=runs/a: a training run" in capfd.readouterr().err


def test_verify_with_one_form(seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]) -> None:
    assert seqzoo("verify", "rnn", "--backend", "naive") == 0
    assert "All laws hold" in capfd.readouterr().out
    assert seqzoo("verify", "rnn", "--backend", "naiv") == 2
    assert "no such form; did you mean 'naive'? allowed:" in capfd.readouterr().err
    assert seqzoo("verify", "lstm", "model.dim=4") == 2
    assert "model.dim=4: verify takes names of models" in capfd.readouterr().err


def test_what_is_printed_fits_a_terminal(
    in_trained: Path,
    seqzoo: Seqzoo,
    capfd: pytest.CaptureFixture[str],
) -> None:
    summary = json.loads(Path("runs/a/summary.json").read_text())
    summary |= {"model": "linear_transformer", "parameters": 123_456_789, "steps": 100_000}
    summary |= {"tokens": 819_200_000, "train_seconds": 3600.0, "tokens_per_second": 227_555.5}
    assert seqzoo("verify", "rnn") == 0
    printed = "\n".join([*closing_lines(summary), capfd.readouterr().out])
    lines = [line for line in printed.splitlines() if "seqzoo" not in line]  # none to type
    assert max(map(len, lines)) <= 90


def test_what_comes_next_names_the_same_data(in_trained: Path) -> None:
    summary = {**json.loads(Path("runs/a/summary.json").read_text()), "model": "lstm"}
    usual = files.defaults("task", "charlm")
    for own, end in (
        ({}, ""),
        ({"path": "my text.txt"}, " 'task.path=my text.txt'"),
        ({"corpus": "python", "seq_len": 9}, " task.seq_len=9 task.corpus=python"),
    ):
        config = {"task": {**usual, **own, "name": "charlm"}}
        *_, last = next_commands(summary, config, Path("runs/a"))
        _, said = last.split(" train model=gru task=charlm")
        assert sorted(said.split()) == sorted(end.split())


# ---- tab completion

COMPLETIONS = {
    "seqzoo ge": ["generate"],
    "seqzoo train model=": files.names("model"),
    "seqzoo train model=ls": ["lstm"],
    "seqzoo train -m model=rnn,ls": ["rnn,lstm"],
    "seqzoo train trainer.max_": [f"trainer.max_{n}=" for n in ("epochs", "seconds", "steps")],
    "seqzoo train model=transformer model.n_": [
        "model.n_heads=",
        "model.n_kv_heads=",
        "model.n_layers=",
    ],
    "seqzoo train task=translation task.batch": ["task.batch_tokens="],
    "seqzoo train task.tokenizer=b": ["bpe", "byte"],
    "seqzoo train task.path=te": ["text.txt"],
    "seqzoo train resume=": ["auto", "runs/a", "runs/b"],
    "seqzoo bench models=[lstm,transf": ["[lstm,transformer"],
    "seqzoo bench bench.max": ["bench.max_step_seconds="],
    "seqzoo bench bench.modes=[train,pre": ["[train,prefill"],
    "seqzoo exam models=[lstm,transf": ["[lstm,transformer"],
    "seqzoo exam exam.abilities=[recall,par": ["[recall,parity"],
    "seqzoo exam exam.see": ["exam.seeds="],
    "seqzoo exam exam.speed=": ["false", "true"],
    "seqzoo exam --c": ["--cfg", "--config-dir", "--config-name"],
    "seqzoo exam -m": [],
    "seqzoo compare runs/a ": ["runs/a", "runs/b"],
    "seqzoo generate ": ["runs/a", "runs/b"],
    "seqzoo eval runs/a --split ": ["test", "val"],
    "seqzoo generate runs/a --to": ["--tokens", "--top-k", "--top-p"],
    "seqzoo verify ls": ["lstm"],
    "seqzoo dashboard ru": ["runs/"],
    "seqzoo nothing ": [],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(trained: Path) -> None:
    lines = "\n".join(f"try {line!r}" for line in COMPLETIONS)
    program = f"""
        eval "$(seqzoo completion bash)"
        try() {{
          COMP_LINE="$1"; COMP_POINT="${{#1}}"; COMP_WORDS=(${{1//=/ = }}); COMPREPLY=()
          _seqzoo
          echo "${{COMPREPLY[*]}}"
        }}
        {lines}
        """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    out = subprocess.run(
        ["bash", "-c", textwrap.dedent(program)],
        cwd=trained,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert dict(zip(COMPLETIONS, map(str.split, out.splitlines()), strict=True)) == COMPLETIONS


def test_completion_knows_every_key_of_the_help(
    seqzoo: Seqzoo, capfd: pytest.CaptureFixture[str]
) -> None:
    seqzoo("train", "--help", "model=rwkv")
    keys = [line.split("=")[0].strip() for line in capfd.readouterr().out.splitlines()]
    for key in keys:
        if key.startswith(("model.", "task.", "trainer.", "optim.", "schedule.")):
            assert f"{key}=" in completion.candidates(f"seqzoo train model=rwkv {key}")
