"""`seqzoo export`: a run's model in the format of other software."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from seqzoo.cli.loading import load_run, new_path
from seqzoo.cli.parser import add_run
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("rwkv", "hf"),
        help="rwkv: a .pth for the rwkv package; hf: a folder for transformers",
    )
    parser.add_argument("--out", required=True, help="the file or folder to write")


def run(options: Namespace) -> None:
    out = new_path(options.out)
    architecture = RunDirectory.open(Path(options.folder)).config["architecture"]["name"]
    if architecture != "decoder_only":
        raise UserError(
            f"{options.folder}: an {architecture}, which no format here can hold: export a run of "
            "architecture=decoder_only"
        )
    run = load_run(options)
    from seqzoo.exchange import hf, rwkv

    if options.format == "rwkv":
        rwkv.export_rwkv(run, out)
        print(f"{out}: for the rwkv package")
    else:
        print(f"{out}: for transformers' {hf.export_hf(run, out)}")
