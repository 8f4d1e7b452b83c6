"""Fingerprints of short trainings: the loss of every step and a SHA-256 of the last weights.

A change that should keep behaviour is checked by running this before and after, on one machine:

    OMP_NUM_THREADS=1 python scripts/fingerprints.py TEXT > before.json
    OMP_NUM_THREADS=1 python scripts/fingerprints.py TEXT --against before.json

TEXT is any UTF-8 text of at least 100 KB. Every family trains on `charlm` and `translation`; some
train as an encoder-decoder, with each bridge and each attention; one run uses each option of the
objective.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from seqzoo.cli.main import main as seqzoo
from seqzoo.models.zoo import FAMILIES

SHORT = (
    "trainer.max_seconds=null trainer.max_steps=10 trainer.log_every=1 trainer.eval_every=5 "
    "trainer.sample_every=5 trainer.checkpoint_every=5 trainer.device=cpu trainer.dtype=float32 "
    "model.dropout=0.1 model.dim=32 model.n_layers=2 schedule.warmup_share=1.0"
).split()
PAIRS = (
    "task=translation task.corpus=numbers task.limit=1000 task.n_pairs=400 task.batch_tokens=256 "
    "task.val_pairs=20 task.test_pairs=20 task.eval_pairs=10"
).split()
ENCODER = "architecture=encoder_decoder"


def runs(text: str) -> dict[str, list[str]]:
    """The overrides of each run, by a name that says what it is."""
    stream = f"task=charlm task.path={text} task.seq_len=32 task.batch_size=4".split()
    stream += "task.val_max_chars=2000 task.sample_tokens=20".split()
    found = {}
    for name in FAMILIES:
        found[f"{name} charlm"] = [f"model={name}", *stream]
        found[f"{name} translation"] = [f"model={name}", *PAIRS]
    for name in ("gru", "transformer", "rwkv7", "mamba2"):
        found[f"{name} encoder-decoder"] = [f"model={name}", *PAIRS, ENCODER]
    for keys in ("bridge=state", "attention=bahdanau", "attention=luong", "bidirectional=false"):
        found[f"lstm encoder-decoder {keys}"] = [
            "model=lstm",
            *PAIRS,
            ENCODER,
            f"architecture.{keys}",
        ]
    found["transformer objective"] = [
        "model=transformer",
        *PAIRS,
        "task.label_smoothing=0.1",
        "task.scheduled_sampling=0.5",
        "trainer.grad_accumulation=2",
        "trainer.average_checkpoints=2",
        "task.tokenizer=bpe",
        "task.vocab_size=300",
        "task.beam=3",
    ]
    found["lstm classic bpe"] = [
        *("model=lstm", "model.block=classic", *stream),
        *("task.tokenizer=bpe", "task.vocab_size=300"),
    ]
    return found


def fingerprint(overrides: list[str]) -> dict[str, object]:
    """Train, and read back what must not change."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            seqzoo(["train", *overrides, *SHORT, f"hydra.run.dir={run}"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        timed = ("seconds", "train/tokens_per_second")
        metrics = [
            {k: v for k, v in line.items() if k not in timed and not isinstance(v, str)}
            for line in lines
        ]
        digests = {
            file: _digest(run / file)
            for file in ("checkpoints/last/model.safetensors", "model/model.safetensors")
        }
        samples = hashlib.sha256((run / "samples.txt").read_bytes()).hexdigest()
        return {"metrics": metrics, **digests, "samples": samples}


def _digest(path: Path) -> str:
    """Of names and values, in the order of names: a file's own order may change."""
    digest = hashlib.sha256()
    with safe_open(path, "numpy") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(name.encode())
            digest.update(tensors.get_tensor(name).tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--against", type=Path, help="fingerprints to compare with")
    parser.add_argument("--only", default="", help="part of the names of the runs to do")
    options = parser.parse_args()
    expected = json.loads(options.against.read_text()) if options.against else {}
    found, unlike = {}, 0
    for name, overrides in runs(str(options.text.resolve())).items():
        if options.only not in name:
            continue
        try:
            found[name] = fingerprint(overrides)
        except Exception as error:
            found[name] = {"error": repr(error)}
        if expected:
            same = {k: v == expected[name].get(k) for k, v in found[name].items()}
            unlike += not all(same.values())
            print(name, "same" if all(same.values()) else f"UNLIKE {same}", flush=True)
        else:
            print(name, file=sys.stderr, flush=True)
    if not expected:
        print(json.dumps(found, indent=1))
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
