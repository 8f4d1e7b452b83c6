"""Official checkpoints imported and exported, with random weights of their shapes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import seqzoo
from calls import status
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.exchange import rwkv, rwkv_names, world

D, V, L, H = 16, 256, 2, 2


def official(version: int) -> dict[str, torch.Tensor]:
    """Names and shapes as the official training code saves them."""
    torch.manual_seed(version)
    att: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (D, D) for name in ("receptance", "key", "value", "output")
    }
    hidden = 56  # 3.5 times the width, as from version 5 on
    ffn: dict[str, tuple[int, ...]] = {"key.weight": (hidden, D), "value.weight": (D, hidden)}
    if version < 7:
        ffn["receptance.weight"] = (D, D)
        ffn |= {f"time_{'maa' if version == 6 else 'mix'}_{name}": (1, 1, D) for name in "kr"}
    if version == 4:
        att |= {f"time_mix_{name}": (1, 1, D) for name in "kvr"}
        att |= {"time_decay": (D,), "time_first": (D,)}
    if version in (5, 6):
        att |= {"gate.weight": (D, D), "time_faaaa": (H, D // H)}
    if version == 5:
        att |= {f"time_mix_{name}": (1, 1, D) for name in "kvrg"} | {"time_decay": (H, D // H)}
    if version == 6:
        att |= {f"time_maa_{name}": (1, 1, D) for name in "xwkvrg"}
        att |= {"time_maa_w1": (D, 15), "time_maa_w2": (5, 3, D), "time_decay": (1, 1, D)}
        att |= {"time_decay_w1": (D, 4), "time_decay_w2": (4, D)}
    if version == 7:
        att |= {f"x_{name}": (1, 1, D) for name in "rwkvag"}
        att |= {f"{name}0": (1, 1, D) for name in "wav"}
        ranks = {"w": 3, "a": 4, "v": 2, "g": 5}
        att |= {f"{name}1": (D, rank) for name, rank in ranks.items()}
        att |= {f"{name}2": (rank, D) for name, rank in ranks.items()}
        att |= {"k_k": (1, 1, D), "k_a": (1, 1, D), "r_k": (H, D // H)}
        ffn["x_k"] = (1, 1, D)
    if version > 4:
        att |= {"ln_x.weight": (D,), "ln_x.bias": (D,)}
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (V, D), "head.weight": (V, D)}
    for name in ("ln_out", "blocks.0.ln0"):
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    for layer in range(L):
        block = f"blocks.{layer}."
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}{name}.weight": (D,), f"{block}{name}.bias": (D,)}
        shapes |= {f"{block}att.{name}": shape for name, shape in att.items()}
        shapes |= {f"{block}ffn.{name}": shape for name, shape in ffn.items()}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize("version", (4, 5, 6, 7))
@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
def test_an_exported_file_is_the_imported_one(
    version: int, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, given = official(version), tmp_path / f"given{suffix}"
    torch.save(tensors, given) if suffix == ".pth" else save_file(tensors, given)
    assert status("import", given, "--out", tmp_path / "run") == 0
    assert f"name rwkv{version}" in capsys.readouterr().out
    run = seqzoo.load(tmp_path / "run")
    logits, _ = run.model(torch.zeros(1, 3, dtype=torch.long))
    assert logits.shape == (1, 3, V) and logits.isfinite().all()
    assert len(run.generate("a", 5, seed=1)) >= 1
    out = tmp_path / "out.pth"
    assert status("export", tmp_path / "run", "--format", "rwkv", "--out", out) == 0
    again = torch.load(out, weights_only=True)
    for name, tensor in again.items():
        assert torch.equal(tensor, tensors[name]), name
    left = tensors.keys() - again.keys()
    assert left == ({f"blocks.0.att.v{i}" for i in range(3)} if version == 7 else set())


def test_tensors_that_may_be_absent(tmp_path: Path) -> None:
    tensors = {n: t for n, t in official(7).items() if not rwkv_names.UNUSED.search(n)}
    torch.save(tensors, tmp_path / "a.pth")
    assert rwkv.import_rwkv(tmp_path / "a.pth", tmp_path / "run", None)["value_rank"] == 2


def test_refused_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*arguments: str) -> str:
        assert status(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    file, run = tmp_path / "a.pth", str(tmp_path / "run")
    assert "no such file" in message("import", str(file), "--out", run)
    file.write_bytes(b"not a checkpoint")
    assert "not a file of named tensors" in message("import", str(file), "--out", run)
    for other in ([torch.zeros(2)], {"a": 1}, torch.zeros(2)):
        torch.save(other, file)
        assert "not a file of named tensors" in message("import", str(file), "--out", run)
    for wrong in (torch.full((256, D), torch.nan), torch.ones(256, D, dtype=torch.int8)):
        torch.save({**official(7), "emb.weight": wrong}, file)
        assert "emb.weight" in message("import", str(file), "--out", run)
    assert "is a file" in message("import", str(file), "--out", str(file / "run"))
    torch.save({"weight": torch.zeros(2)}, file)
    assert "version 4 to 7" in message("import", str(file), "--out", run)
    tensors = official(6)
    torch.save({**tensors, "extra": torch.zeros(1)}, file)
    assert "extra is not known" in message("import", str(file), "--out", run)
    turned = tensors["blocks.0.ffn.value.weight"].t().contiguous()
    torch.save({**tensors, "blocks.0.ffn.value.weight": turned}, file)
    assert "should be" in message("import", str(file), "--out", run)
    torch.save({n: t for n, t in tensors.items() if n != "blocks.0.att.key.weight"}, file)
    assert "blocks.0.att.key.weight" in message("import", str(file), "--out", run)
    del tensors["blocks.1.ffn.key.weight"]
    torch.save(tensors, file)
    assert "blocks.1.ffn.key.weight is missing" in message("import", str(file), "--out", run)
    torch.save({**official(4), "emb.weight": torch.zeros(99, D)}, file)
    assert "--vocabulary" in message("import", str(file), "--out", run)
    assert not Path(run).exists()


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"emb.weight": Bad()}, tmp_path / "bad.pth")
    assert status("import", tmp_path / "bad.pth", "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "nothing in it was run" in message and "weights_only" not in message
    assert not (tmp_path / "ran").exists()


def test_world_vocabulary(tmp_path: Path) -> None:
    """The longest token that fits, from left to right, whatever bytes it ends in."""
    words = [bytes([i]) for i in range(256)] + [
        b"\n\n",
        b"the",
        b" the",
        b"there",
        "né".encode()[:2],
    ]
    lines = []
    for index, word in enumerate(words, 1):
        try:
            literal = repr(word.decode())
        except UnicodeDecodeError:
            literal = repr(word)
        lines.append(f"{index} {literal} {len(word)}")
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(lines))
    tokenizer = Tokenizer.longest_match(world.read(path))
    text = "then the there\n\n\nné né"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    expected, data = [], text.encode()
    while data:
        best = max((w for w in words if data.startswith(w)), key=len)
        expected.append(words.index(best) + 1)
        data = data[len(best) :]
    assert ids.tolist() == expected
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.kind == "longest" and np.array_equal(again.encode(text), ids)
    assert again.inner.encode(text).ids == expected  # as the library reads it


def test_formats_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(official(7), tmp_path / "a.pth")
    rwkv.import_rwkv(tmp_path / "a.pth", tmp_path / "run", None)
    out = str(tmp_path / "out")
    assert status("export", tmp_path / "run", "--format", "hf", "--out", out) == 2
    assert "rwkv7" in capsys.readouterr().err
    assert status("export", tmp_path / "run", "--format", "rwkv", "--out", out) == 2
    assert ".pth" in capsys.readouterr().err
    written = tmp_path / "run/config.yaml"
    for rate, status_ in ((2.0, 2), (1.0, 0)):
        written.write_text(re.sub("beta_max: .*", f"beta_max: {rate}", written.read_text()))
        assert (
            status("export", tmp_path / "run", "--format", "rwkv", "--out", f"{out}.pth") == status_
        )
    assert "beta_max=2.0" in capsys.readouterr().err
    assert status("eval", tmp_path / "run") == 2
    assert "--path FILE" in capsys.readouterr().err
    assert status("eval", tmp_path / "run", "--path", tmp_path / "a.pth", "--cache", "") == 2
    assert "POLICY:SIZE" in capsys.readouterr().err
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["vocab_size"] == V
