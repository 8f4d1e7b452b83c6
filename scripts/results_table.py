"""A Markdown table of finished runs.

python scripts/results_table.py RUN...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = ("val/loss", "val/stream_loss", "test/exact", "test/bleu", "test/chrf")


def main(folders: list[str]) -> None:
    runs = {f: json.loads((Path(f) / "summary.json").read_text()) for f in folders}
    used = [c for c in COLUMNS if any(c in run for run in runs.values())]
    print("| run | parameters | steps | tokens/s | s | " + " | ".join(used) + " |")
    print("|---|--:|--:|--:|--:|" + "--:|" * len(used))
    for folder, run in runs.items():
        cells = [f"{run['parameters']:,}", f"{run['steps']:,}", f"{run['tokens_per_second']:,.0f}"]
        cells += [f"{run['train_seconds']:.0f}"]
        cells += [f"{run[c]:.4f}" if c in run else "" for c in used]
        print(f"| {Path(folder).name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
