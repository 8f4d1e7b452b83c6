"""Read a text of any length with a trained model whose state has a fixed size.

    seqzoo train model=rwkv7 task.tokenizer=byte hydra.run.dir=runs/bytes
    python examples/stream_any_length.py runs/bytes book.txt

The file is read piece by piece, so neither the text nor the state grows in memory.
"""

import argparse
import math
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F

import seqzoo


def pieces(path: str, size: int) -> Iterator[str]:
    """A UTF-8 file, `size` characters at a time."""
    with open(path, encoding="utf-8") as file:
        while piece := file.read(size):
            yield piece


@torch.inference_mode()
def stream(run: seqzoo.Run, texts: Iterator[str]) -> Iterator[tuple[int, float, int]]:
    """After each piece: characters read so far, bits a character, bytes of the state."""
    state, last = None, torch.empty(0, dtype=torch.long)
    characters, nats = 0, 0.0
    for text in texts:
        # A character or byte tokenizer encodes pieces as it encodes the whole.
        tokens = torch.from_numpy(run.tokenizer.encode(text).astype("int64"))
        known = torch.cat((last, tokens))
        inputs, targets = known[:-1], known[1:]  # the very first token is not predicted
        if len(inputs):
            logits, state = run.model(inputs[None], state)
            nats += float(F.cross_entropy(logits[0].float(), targets, reduction="sum"))
        last = known[-1:]
        characters += len(text)
        yield characters, nats / math.log(2) / characters, seqzoo.nbytes(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a run directory of task=charlm")
    parser.add_argument("path", metavar="FILE", help="a UTF-8 text file")
    parser.add_argument("--piece", type=int, default=4096, help="characters at once")
    options = parser.parse_args()
    run = seqzoo.load(options.run, device="cpu")
    if run.model.state_grows:
        sys.exit(f"{options.run}: its state grows with the text: train model=lstm or model=rwkv7")
    print(f"{'characters':>12}  {'bits a character':>16}  {'state bytes':>12}")
    for characters, bits, size in stream(run, pieces(options.path, options.piece)):
        print(f"{characters:>12,}  {bits:>16.4f}  {size:>12,}")


if __name__ == "__main__":
    try:
        main()
    except seqzoo.UserError as error:  # a wrong request: one line says what to change
        sys.exit(str(error))
