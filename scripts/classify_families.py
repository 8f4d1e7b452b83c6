"""Every family as a classifier at equal parameters and equal seconds; prints a table.

    python scripts/classify_families.py --seconds 120 --parameters 400000

Each run has one thread; as many run at once as there are cores. The data are speeches of
Shakespeare's plays, or a TSV given with --path.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seqzoo.config import files
from seqzoo.models.width import solve_width
from seqzoo.models.zoo import FAMILIES
from seqzoo.report.text import markdown

COLUMNS = ("val/accuracy", "test/accuracy", "test/macro_f1")


def train(name: str, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train one family in a process of its own; its summary, with the width."""
    keys = files.defaults("model", name)
    sizes = {"vocab_size": files.defaults("task", "classification")["vocab_size"], "n_classes": 3}
    dim = solve_width(options.parameters, architecture="classifier", **sizes, **keys)
    overrides = [
        *(f"model={name}", "task=classification", f"model.dim={dim}", "model.dropout=0.1"),
        *(f"trainer.max_seconds={options.seconds}", "trainer.eval_every=100"),
        *("trainer.sample_every=null", "trainer.device=cpu", f"hydra.run.dir={folder / name}"),
    ]
    if options.path:
        overrides.append(f"task.path={options.path.resolve()}")
    command = [sys.executable, "-m", "seqzoo", "train", *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    summary = json.loads((folder / name / "summary.json").read_text())
    print(name, *(f"{summary[c]:.1f}" for c in COLUMNS), file=sys.stderr, flush=True)
    return {**summary, "dim": dim}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--parameters", type=int, default=400_000)
    parser.add_argument("--models", nargs="+", default=list(FAMILIES))
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(name, options, Path(folder)) for name in options.models]
        found = list(pool.map(lambda job: train(*job), jobs))
    rows = [
        [
            str(one["model"]),
            *(f"{one[column]:.1f} %" for column in COLUMNS),
            f"{one['parameters']:,}",
            str(one["dim"]),
            f"{one['epochs']:.1f}",
            f"{one['tokens_per_second']:,.0f}",
        ]
        for one in sorted(found, key=lambda one: -float(str(one["test/accuracy"])))
    ]
    head = ["model", *COLUMNS, "parameters", "dim", "epochs", "tokens/s"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
