"""One of each thing that another package can add to seqzoo. This module loads no torch."""

from pathlib import Path

from seqzoo.config.plugins import Plugin
from seqzoo.models.zoo import Family
from seqzoo.tasks import TaskEntry

plugin = Plugin(
    models={"leaky": Family("seqzoo_example.leaky:Leaky", "stack")},
    tasks={
        "echo": TaskEntry(
            "seqzoo_example.echo_data:load",
            "seqzoo_example.echo:Echo",
            architectures=("decoder_only",),
            sources=(),
            length="n_letters",
        )
    },
    corpora={"alphabet": "seqzoo_example.alphabet:alphabet"},
    optim={"sign": "seqzoo_example.optim:sign"},
    schedule={"halving": "seqzoo_example.optim:halving"},
    loggers={"lines": "seqzoo_example.observers:Lines"},
    hooks={"weight_norm": "seqzoo_example.observers:WeightNorm"},
    backends={"linear_scan.cumulative": "seqzoo_example.backend:CUMULATIVE"},
    configs=Path(__file__).parent / "configs",
)
