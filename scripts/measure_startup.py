"""How long a user waits for the first step of a training, and for the first character of a text.

    python scripts/measure_startup.py [--rounds N]

Prints one Markdown table: seconds from the start of a process, the median of rounds in which the
commands take turns, beside a process that imports torch and nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from select import select

TRAIN = "train model=lstm task=charlm trainer.log_every=1 trainer.eval_every=null".split()
PATIENCE = 120.0  # seconds that a process may take


def seconds_until(command: list[str], begun: Callable[[subprocess.Popen[bytes]], bool]) -> float:
    """Seconds from the start of a process until something is seen of it; then it is killed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while True:
            over = process.poll() is not None or time.perf_counter() - start > PATIENCE
            if begun(process):
                return time.perf_counter() - start
            if over:
                raise RuntimeError(f"nothing was seen of {' '.join(command)}")
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()


def prints(n: int) -> Callable[[subprocess.Popen[bytes]], bool]:
    """Whether a process has printed `n` characters."""
    left = n

    def begun(process: subprocess.Popen[bytes]) -> bool:
        nonlocal left
        assert process.stdout is not None
        if select([process.stdout], [], [], 0)[0]:
            left -= len(os.read(process.stdout.fileno(), left))
        return left <= 0

    return begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each command")
    rounds = parser.parse_args().rounds
    seqzoo = [sys.executable, "-m", "seqzoo"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        subprocess.run(
            [*seqzoo, *TRAIN, "trainer.max_steps=2", f"hydra.run.dir={run}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )

        def torch() -> float:
            return seconds_until([sys.executable, "-c", "import torch; print(1)"], prints(1))

        def train() -> float:
            new = Path(tempfile.mkdtemp(dir=folder))
            metrics = new / "metrics.jsonl"
            return seconds_until(
                [*seqzoo, *TRAIN, f"hydra.run.dir={new}"],
                lambda _: metrics.exists() and metrics.stat().st_size > 0,
            )

        def generate() -> float:
            command = [*seqzoo, "generate", str(run), "--prompt", "T"]
            return seconds_until(command, prints(2))  # the prompt, and the first of the text

        calls = {
            "`import torch`": torch,
            "`seqzoo train model=lstm task=charlm`, the first step": train,
            "`seqzoo generate`, the first character": generate,
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                times[name].append(call())
    print("| process | seconds | beyond `import torch` |\n|---|--:|--:|")
    base = statistics.median(times["`import torch`"][1:])  # the first turn reads files from disk
    for name, taken in times.items():
        median = statistics.median(taken[1:])
        print(f"| {name} | {median:.2f} | {median - base:.2f} |")


if __name__ == "__main__":
    main()
