"""The table of models and their YAML files; and a family added from outside."""

import re

import pytest
import torch
import yaml

import seqzoo
from seqzoo.cli.checks import check_config
from seqzoo.cli.compose import compose, parse
from seqzoo.config.files import CONFIGS, names
from seqzoo.decoding.step import prepare
from seqzoo.models.zoo import ALIASES, FAMILIES, build_keys, model_keys


@pytest.mark.parametrize("name", [*FAMILIES, *ALIASES])
def test_build_and_go_on(name: str) -> None:
    model = seqzoo.build(name, vocab_size=13, dim=16, n_layers=1).eval()
    tokens = torch.randint(0, 13, (2, 7))
    logits, state = model(tokens[:, :4])
    more, state = model(tokens[:, 4:], state)
    assert logits.shape == (2, 4, 13)
    torch.testing.assert_close(torch.cat((logits, more), 1), model(tokens)[0])
    assert seqzoo.nbytes(state) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_of_other_rows_or_another_model_is_refused(name: str) -> None:
    """Before anything is computed: a kernel would read beyond the end of it."""
    depth = max(2, len(model_keys(name).get("pattern", "1")))
    model, other = (
        seqzoo.build(name, vocab_size=13, dim=dim, n_layers=depth).eval() for dim in (64, 32)
    )
    tokens = torch.zeros(4, 8, dtype=torch.long)
    states = {"rows": model(tokens[:3])[1], "width": other(tokens)[1]}
    for given in (tokens, tokens[:, :1]):
        with pytest.raises(ValueError, match="a state of 3 rows for 4 rows"):
            model(given, states["rows"])
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            model(given, states["width"])
    if prepare(model, model(tokens)[1], 4, room=64) is not None:
        for state in states.values():
            with pytest.raises((ValueError, RuntimeError, IndexError)):
                prepare(model, state, 4, room=64)


@pytest.mark.parametrize("name", FAMILIES)
def test_options_reach_the_model(name: str) -> None:
    """Every key changes what is built, or is said to be another arrangement's."""
    depth = len(model_keys(name).get("pattern", "1"))
    small = {"dim": 16, "n_layers": depth}
    if "block" in model_keys(name):
        small["block"] = "prenorm"
    default = seqzoo.build(name, vocab_size=13, **small)
    changed = {"dim": 32, "n_layers": depth + 1, "mlp_ratio": 5, "tie_embeddings": True}
    for key, value in changed.items():
        other = seqzoo.build(name, vocab_size=13, **{**small, key: value})
        assert other.n_parameters() != default.n_parameters(), key
    dropped = seqzoo.build(name, vocab_size=13, **small, dropout=0.5).train()
    tokens = torch.zeros(1, 20, dtype=torch.long)
    assert not torch.equal(dropped(tokens)[0], dropped(tokens)[0])
    assert torch.equal(dropped.eval()(tokens)[0], dropped(tokens)[0])


@pytest.mark.parametrize("name", ("lstm", "transformer"))
def test_a_model_too_large_for_memory_is_refused(name: str) -> None:
    with pytest.raises(seqzoo.UserError, match=r"model.dim=10000000.*,\d+ bytes.*lower one"):
        seqzoo.build(name, vocab_size=13, dim=10_000_000, n_layers=1)


def test_tied_embeddings_are_one_matrix() -> None:
    model = seqzoo.build("gru", vocab_size=13, dim=16, n_layers=1, tie_embeddings=True)
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("name", names("experiment"))
def test_every_recipe_composes(name: str) -> None:
    """And those of Tiny Shakespeare, which docs/results.md compares, have 1.5M parameters at most;
    65 is the number of its characters."""
    given = ["task.path=FOLDER"] if name.startswith("multi30k") else []
    (config,) = compose(parse([f"experiment={name}", *given]))
    check_config(config)
    if name.startswith("tinyshakespeare"):
        with torch.device("meta"):
            model = seqzoo.build(**build_keys(config), vocab_size=65)
        assert 500_000 < model.n_parameters() <= 1_500_000


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_key_is_explained(path) -> None:
    if path.parent.name == "experiment":
        return
    section = path.read_text().partition("\nhydra:")[0]
    for line in section.splitlines():
        if re.match(r"\s*[a-z_0-9]+: \S", line) and not re.match(r"\s*(name|- )", line):
            assert " # " in line or path.stem in ("rwkv",) or _explained_before(line), (
                f"{path.name}: {line}"
            )


def _explained_before(line: str) -> bool:
    """Keys that come in a row and share the comment of the first."""
    return line.split(":")[0].strip() in {
        "test_path",
        "target",
        "val_source",
        "val_target",
        "test_source",
        "test_target",
        "target_lang",
        "lr",
        "n_layers",
    }


@pytest.mark.parametrize("name", ALIASES)
def test_hydra_and_python_agree_on_aliases(name: str) -> None:
    assert yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())["defaults"] == [
        ALIASES[name]
    ]


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("lstn", {}, "did you mean 'lstm'"),
        ("lstm", {"dims": 3}, "did you mean 'dim'"),
        ("transformer", {"dim": 250, "n_heads": 8}, "try model.dim=248 or model.n_heads=10"),
        ("transformer", {"position": "rop"}, "give one of rope"),
        ("transformer", {"dim": 12, "n_heads": 4}, "rope turns pairs"),
        ("gru", {"dim": -1}, "from 1 up"),
        ("gru", {"dropout": float("nan")}, "give a number from 0"),
        ("gru", {"dim": 2.5}, "a whole number"),
        ("gru", {"tie_embeddings": 1}, "true or false"),
    ],
)
def test_wrong_models_are_refused(name: str, keys: dict, said: str) -> None:
    with pytest.raises(seqzoo.UserError, match=re.escape(said)):
        seqzoo.build(name, vocab_size=5, **keys)


def test_learned_positions_end() -> None:
    model = seqzoo.build(
        "transformer", vocab_size=5, dim=16, n_layers=1, position="learned", max_len=8
    )
    with pytest.raises(ValueError, match="max_len=9"):
        model(torch.zeros(1, 9, dtype=torch.long))
