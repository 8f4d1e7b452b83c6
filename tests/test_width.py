"""Models of a given number of parameters: `model.parameters`."""

from pathlib import Path

import pytest
import torch
import yaml

import seqzoo
from calls import assert_refused, status
from seqzoo.models.width import solve_width
from seqzoo.models.zoo import FAMILIES, build, model_keys
from seqzoo.runs.directory import RunDirectory

SMALL = (
    "task.path=text.txt task.batch_size=4 task.seq_len=16 task.sample_tokens=5 "
    "task.val_max_chars=600 model.n_layers=1 trainer.max_steps=4 trainer.device=cpu"
).split()
ARCHITECTURES = {
    "decoder_only": {},
    "encoder_decoder": {"architecture": "encoder_decoder"},
    "classifier": {"architecture": "classifier", "n_classes": 3, "bidirectional": True},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> Path:
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text_file.read_text())
    return tmp_path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_nearest_width(name: str, architecture: str) -> None:
    """No neighbour among the widths that the heads divide has a nearer number of parameters."""
    keys = {"vocab_size": 65, "n_layers": 2, **ARCHITECTURES[architecture]}

    def size(dim: int) -> int:
        with torch.device("meta"):
            return build(name, dim=dim, **keys).n_parameters()

    dim = solve_width(300_000, name=name, **keys)
    model = seqzoo.build(name, parameters=300_000, **keys)
    assert model.embedding.weight.shape[1] == dim
    assert model.n_parameters() == size(dim) == pytest.approx(300_000, rel=0.15)
    unit = 2 * model_keys(name).get("n_heads", 4)
    for neighbour in (dim - unit, dim + unit):
        assert abs(size(neighbour) - 300_000) >= abs(size(dim) - 300_000)


def test_the_heads_of_every_layer_divide_the_width() -> None:
    keys = {"pattern": ["gla", "transformer"], "layers": {"transformer": {"n_heads": 6}}}
    model = seqzoo.build("hybrid", vocab_size=65, n_layers=2, parameters=100_000, **keys)
    assert model.embedding.weight.shape[1] % 24 == 0  # 8 of GLA's four heads, 12 of the six


def test_refused_from_python() -> None:
    def call(parameters: int, **keys: int) -> object:
        return seqzoo.build("gru", vocab_size=65, parameters=parameters, **keys)

    assert_refused(lambda: call(9, n_layers=1), "model.dim=8", "vocabulary of 65", "or more")
    assert_refused(lambda: call(90_000, dim=8), "model.dim=8", "leave model.dim out")


def test_a_sweep_of_models_of_one_size(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys = ["model=lstm,transformer", "model.parameters=40_000", "hydra.sweep.dir=sweep"]
    assert status("train", "-m", *keys, *SMALL) == 0
    out = capfd.readouterr().out
    for run in RunDirectory.below(Path("sweep")):
        parameters, dim = run.summary["parameters"], run.config["model"]["dim"]
        assert parameters == pytest.approx(40_000, rel=0.2)
        assert f"model.parameters=40,000: model.dim={dim}, {parameters:,} parameters" in out
        assert seqzoo.load(run.path).model.n_parameters() == parameters
    assert status("train", "-m", "resume=auto", *keys, *SMALL) == 0
    assert capfd.readouterr().out.count("finished before") == 2


def test_going_on_keeps_the_width(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also of a run whose width would be solved for with another result today."""
    assert status("train", "model=gru", "model.parameters=20000", "hydra.run.dir=a", *SMALL) == 0
    before = yaml.safe_load((place / "a/config.yaml").read_text())["model"]
    assert before["parameters"] == 20_000
    capfd.readouterr()
    assert status("train", "resume=a", "model.parameters=20000", "trainer.max_steps=6") == 0
    assert "model.parameters" not in capfd.readouterr().out
    assert yaml.safe_load((place / "a/config.yaml").read_text())["model"] == before


def test_too_few_leave_no_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status("train", "model.parameters=10", "hydra.run.dir=a", *SMALL) == 2
    assert "lstm has" in capfd.readouterr().err and not (place / "a").exists()


def test_a_recipes_width_is_replaced(place: Path) -> None:
    recipe = ["experiment=tinyshakespeare_gru", "model.parameters=30000", "model.n_layers=1"]
    assert status("train", *recipe, "hydra.run.dir=a", *SMALL) == 0
    assert RunDirectory("a").summary["parameters"] == pytest.approx(30_000, rel=0.2)


def test_info_solves_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert status("info", "model=gru", "model.parameters=1000000") == 0
    first, second, *_ = capfd.readouterr().out.splitlines()
    assert "dim " in first and "parameters " not in first
    assert int(second.split()[1].replace(",", "")) == pytest.approx(1_000_000, rel=0.05)


def test_help_and_completion_know_it(capfd: pytest.CaptureFixture[str]) -> None:
    from seqzoo.cli import completion

    assert status("train", "--help", "model=gla") == 0
    assert "model.parameters=null" in capfd.readouterr().out
    assert completion.candidates("seqzoo train model=gla model.par") == ["model.parameters="]
