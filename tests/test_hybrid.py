"""Hybrids: which families a pattern gives, whose keys reach which layer, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import seqzoo
from calls import assert_refused, status
from seqzoo.mixers.attention import CausalAttention
from seqzoo.models.zoo import layers, model_keys

SMALL = {"vocab_size": 11, "dim": 16, "n_heads": 2}


def small(*pattern: str, **keys: Any) -> Any:
    keys = {"n_layers": len(pattern), **keys}
    return seqzoo.build("hybrid", pattern=list(pattern), **SMALL, **keys)


def mixers(model: Any) -> list[str]:
    return [type(layer.mixer).__name__ for layer in model.layers]


def test_the_pattern_is_repeated() -> None:
    model = small("gla", "gru", "transformer", n_layers=5)
    names = ["GatedLinearAttention", "GRU", "CausalAttention"]
    assert mixers(model) == names + names[:2]


def test_a_pattern_of_one_family_is_that_family() -> None:
    torch.manual_seed(1)
    family = seqzoo.build("deltanet", n_layers=3, **SMALL)
    torch.manual_seed(1)
    hybrid = small("deltanet", n_layers=3)
    tokens = torch.randint(11, (2, 9))
    assert torch.equal(family(tokens)[0], hybrid(tokens)[0])


def test_keys_of_a_family_reach_its_layers_alone() -> None:
    keys = {"transformer": {"n_kv_heads": 1, "mlp_ratio": 2}}
    model = small("gla", "transformer", layers=keys)
    assert model.layers[0].channel.up.out_features == 4 * 16
    assert model.layers[1].channel.up.out_features == 2 * 16
    assert model.layers[1].mixer.heads == (2, 1, 1)


def test_an_entry_can_be_a_second_kind_of_a_family() -> None:
    model = small(
        "local", "transformer", layers={"local": {"name": "transformer", "cache": "window:3"}}
    )
    first, second = (layer.mixer for layer in model.layers)
    assert isinstance(first, CausalAttention) and isinstance(second, CausalAttention)
    assert first.policy is not None and second.policy is None


def test_keys_of_the_model_go_before_those_of_a_file() -> None:
    keys = model_keys("hybrid", pattern=["rnn", "gla"], mlp_ratio=3)
    ratios = [(own["name"], own["mlp_ratio"]) for _, own in layers(keys)]
    assert ratios == [("rnn", 3), ("gla", 3)] * 2


def test_values_of_rwkv7_pass_other_layers_by() -> None:
    """The first of its family has no share of another's values, wherever it is; the next has."""
    model = small("transformer", "rwkv7", "gla", "rwkv7")
    assert [hasattr(layer.mixer, "v1") for layer in model.layers] == [False, False, False, True]
    model(torch.zeros(1, 3, dtype=torch.long))[0].sum().backward()
    with torch.no_grad():
        for layer in model.layers:
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tokens = torch.randint(11, (1, 6))
    before = model(tokens)[0]
    with torch.no_grad():  # a layer of another family hands on nothing, and stops nothing
        model.layers[3].mixer.v0.add_(1)
    assert not torch.equal(before, model(tokens)[0])


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({"pattern": []}, ("model.pattern=[]", "give the family of each layer")),
        ({"pattern": ["gla", "lstmm"]}, ("model.pattern=[gla,lstmm]", "'lstm'")),
        ({"pattern": ["hybrid"]}, ("hybrid is a hybrid itself",)),
        (
            {
                "pattern": ["transformer", "near"],
                "layers": {
                    "transformer": {"value_residual": True},
                    "near": {"name": "transformer", "window": 8},
                },
            },
            ("model.layers.near.value_residual=false", "give true, as transformer has"),
        ),
        ({"layers": {"gla": {}}}, ("model.layers.gla", "not in model.pattern")),
        ({"layers": {"transformer": {"dim": 8}}}, ("layers.transformer.dim", "model.dim")),
        (
            {"layers": {"transformer": {"cahce": None}}},
            ("model.layers.transformer.cahce", "'cache'"),
        ),
        (
            {"layers": {"transformer": {"n_kv_heads": 0}}},
            ("layers.transformer.n_kv_heads=0", "1 up"),
        ),
        (
            {"layers": {"transformer": {"position": "learned"}}},
            ("position=learned", "rope or none"),
        ),
        (
            {"layers": {"transformer": 3}},
            ("model.layers={transformer:3}", "model.layers.ENTRY.KEY"),
        ),
        ({"dim": 18, "n_heads": 4}, ("model.dim (18)", "model.n_heads (4)")),
    ],
)
def test_what_cannot_be_built_is_refused(keys: dict[str, Any], needed: tuple[str, ...]) -> None:
    assert_refused(lambda: seqzoo.build("hybrid", vocab_size=5, **keys), *needed)


def test_commands(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, go on, evaluate, generate; one key of one family's layers from the command line."""
    run = tmp_path / "run"
    keys = ["model=hybrid", "model.pattern=[gru,transformer]", "model.dim=16", "model.n_layers=2"]
    keys += ["model.layers.transformer.n_kv_heads=1", f"task.path={text_file}", "task.seq_len=16"]
    keys += ["trainer.max_steps=4", "trainer.device=cpu", f"hydra.run.dir={run}"]
    assert status("train", *keys) == 0
    assert seqzoo.load(run).model.layers[1].mixer.heads[1] == 1
    assert status("train", f"resume={run}", "trainer.max_steps=6") == 0
    assert status("eval", run, "--device", "cpu") == 0
    assert status("generate", run, "--tokens", 20) == 0
    capsys.readouterr()
    assert status("info", run) == 0
    printed = capsys.readouterr().out
    assert "pattern [gru,transformer]" in printed and "layers: 1 gru, 1 transformer" in printed
    assert status("info", "model=griffin", "model.n_layers=2") == 0
    assert "layers: 2 rglru, 0 transformer" in capsys.readouterr().out
    assert status("info", "model=hybrid", "model.layers.transformer.n_heads=3") == 2
    assert "model.n_heads (3)" in capsys.readouterr().err
