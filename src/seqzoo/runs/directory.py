"""The run directory: what is in it, and the only code that reads or writes it.

    config.yaml      the whole resolved configuration
    metrics.jsonl    an object a line: {"step", "tokens", "seconds", "train/loss", ...}
    samples.txt      outputs of the model during training
    summary.json     the result; `status` is `finished`, `interrupted` or `failed`
    model/           config.json, model.safetensors, tokenizer.json: the exported model
    checkpoints/     see `seqzoo.runs.checkpoint`
    tensorboard/     event files
    inspect/         figures of `seqzoo inspect`

Loads torch only where it reads or writes tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.errors import UserError
from seqzoo.runs.checkpoint import Checkpoints, write_text

if TYPE_CHECKING:
    from torch import nn

    from seqzoo.data.tokenizers import Tokenizer

SIZES = ("vocab_size", "source_vocab_size", "n_classes")
DATA = ("data_sha256", "val_sha256", "tokenizer_sha256")
TOKENIZERS = ("tokenizer", "source_tokenizer", "labels")
METRICS = "metrics.jsonl"


class RunDirectory:
    """A directory that a training run has, or will have.

    Attributes:
        path: where it is.
        checkpoints: the checkpoints in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    @classmethod
    def claim(cls, wanted: Path) -> RunDirectory:
        """A new directory at a path, or at one with a number behind it: two runs that begin in one
        second get two.

        Raises:
            UserError: a thousand of them are there.
        """
        for number in range(1, 1000):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
            path.mkdir(parents=True, exist_ok=True)
            try:
                (path / "config.yaml").touch(exist_ok=False)
            except FileExistsError:
                continue
            return cls(path)
        raise UserError(f"{wanted}: in use: give another hydra.run.dir")

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The directory of a run that exists, or the folder `model` of one.

        Raises:
            UserError: there is none.
        """
        directory = cls(path)
        if not (directory.path / "config.yaml").is_file() and not directory._is_model:
            raise UserError(
                f"{path}: no run directory (no config.yaml in it): give one that seqzoo train made"
            )
        return directory

    @staticmethod
    def find(paths: Sequence[str | Path], marker: str = METRICS) -> list[RunDirectory]:
        """The run directories among some folders and below them, in order, none twice.

        Args:
            marker: a file that each of them has.

        Raises:
            UserError: a folder without any.
        """
        found: dict[Path, RunDirectory] = {}
        for path in map(Path, paths):
            below = sorted(file.parent for file in path.rglob(marker)) if path.is_dir() else []
            if not below:
                raise UserError(
                    f"{path}: no run in it: give directories that seqzoo made, or one above"
                )
            for folder in below:
                found.setdefault(folder.resolve(), RunDirectory(folder))
        return list(found.values())

    @staticmethod
    def below(root: Path) -> Iterator[RunDirectory]:
        """Every directory with a config.yaml at or below a folder, in order."""
        for file in sorted(root.rglob("config.yaml")):
            yield RunDirectory(file.parent)

    # ---- the configuration and the result

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration, in today's sections whichever release wrote it. Read once.

        Raises:
            UserError: there is none, or it is not one of a run.
        """
        import yaml

        from seqzoo.config.moved import current

        RunDirectory.open(self.path)  # refuses what is no run
        path = self.path / ("config.json" if self._is_model else "config.yaml")
        try:
            text = path.read_text(encoding="utf-8")
            config = json.loads(text)["run"] if self._is_model else yaml.safe_load(text)
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
            config = None
        sections = ("model", "task", "trainer")
        if (
            not isinstance(config, Mapping)
            or not all(isinstance(config.get(section), Mapping) for section in sections)
            or not all(isinstance(config[part].get("name"), str) for part in ("model", "task"))
        ):
            raise UserError(
                f"{path}: not the configuration of a run: give a directory that seqzoo train made"
            )
        return current(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)
        self.__dict__.pop("config", None)  # the one that was read

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; {} while there is none."""
        try:
            return dict(json.loads((self.path / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_text(self.path / "summary.json", json.dumps(dict(summary), indent=1) + "\n")

    def mark_failed(
        self, reason: str, status: str = "failed", facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write a summary of a run that ended without one: its status, the reason, and `facts`."""
        config = self.config
        named = {section: config[section]["name"] for section in ("model", "task")}
        self.write_summary({**(facts or {}), **named, "status": status, "error": reason})

    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed."""
        return self.checkpoints.resolve("last") is not None

    def unfinished(self) -> bool:
        """Whether the run can be resumed and has not ended by itself."""
        return self.has_checkpoint() and self.summary.get("status") != "finished"

    @property
    def last_written(self) -> float:
        """When the run began or wrote its last line of metrics, in seconds since 1970."""
        files = [self.path / name for name in ("config.yaml", METRICS)]
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def remove_if_empty(self) -> None:
        """Remove the directory of a request that was refused, if config.yaml is all it has."""
        if [path.name for path in self.path.iterdir()] == ["config.yaml"]:
            (self.path / "config.yaml").unlink()
            self.path.rmdir()

    # ---- logs

    def begin_logs(self, step: int) -> None:
        """Begin metrics.jsonl and samples.txt. On resuming at a step, lines of metrics that an
        interrupted run wrote beyond it are removed, so that no point is there twice."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(line for line in lines if _step_of(line) <= step))
        self._append("samples.txt", "")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. A last line that is cut short is left out."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if math.isfinite(_step_of(line))]

    def add_metrics(self, line: Mapping[str, float]) -> None:
        self._append(METRICS, json.dumps(dict(line)) + "\n")

    def add_sample(self, text: str, step: int) -> None:
        self._append("samples.txt", f"--- step {step}\n{text}\n\n")

    def _append(self, name: str, text: str) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def inspect(self) -> Path:
        return self.path / "inspect"

    # ---- the exported model

    @property
    def model(self) -> Path:
        """The folder of the exported model; the directory itself where it is such a folder."""
        return self.path if self._is_model else self.path / "model"

    @property
    def _is_model(self) -> bool:
        described = (self.path / "config.json").is_file()
        return described and not (self.path / "config.yaml").exists()

    @property
    def weights(self) -> Path:
        """Of the exported model; there is no such file before the run has ended."""
        return self.model / "model.safetensors"

    def sizes(self) -> dict[str, Any]:
        """What `build` needs to know of the data: `vocab_size`, and `source_vocab_size` or
        `n_classes` where the model has them.

        Raises:
            UserError: the model's config.json is missing or damaged.
        """
        described = self._described()
        return {key: described[key] for key in SIZES if key in described}

    def _described(self) -> dict[str, Any]:
        path = self.model / "config.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(
                f"{path}: missing or damaged: put it back, or train the model again"
            ) from None

    def digests(self) -> dict[str, str]:
        """What tells whether two runs can be compared: digests of the data, of the validation
        split and of the tokenizers, as far as they are known."""
        try:
            known = {**self._described(), **self.summary}
        except UserError:
            known = self.summary
        return self._tokenizer_digest() | {key: known[key] for key in DATA if known.get(key)}

    def _tokenizer_digest(self) -> dict[str, str]:
        """That of the tokenizers together; {} while there are none."""
        paths = [path for name in TOKENIZERS if (path := self.tokenizer_path(name))]
        content = b"".join(path.read_bytes() for path in paths)
        return {"tokenizer_sha256": hashlib.sha256(content).hexdigest()} if paths else {}

    def tokenizer_path(self, name: str = "tokenizer") -> Path | None:
        """The file of a tokenizer of the exported model, if there is one of that name."""
        path = self.model / f"{name}.json"
        return path if path.exists() else None

    def describe_model(
        self,
        config: Mapping[str, Any],
        sizes: Mapping[str, int],
        tokenizers: Mapping[str, Tokenizer],
        data: Mapping[str, str] = {},
    ) -> dict[str, str]:
        """Write all that it takes to load the model elsewhere, but for the weights.

        Args:
            config: of the run; the folder `model` keeps it, and so loads by itself.
            sizes: see `sizes`.
            tokenizers: by the name of their file.
            data: digests of the data, see `digests`.

        Returns:
            The digests, with that of the tokenizers.
        """
        self.model.mkdir(exist_ok=True)
        for name, tokenizer in tokenizers.items():
            tokenizer.save(self.model / f"{name}.json")
        digests = {**data, **self._tokenizer_digest()}
        described = {**config["model"], **sizes, **digests, "run": dict(config)}
        write_text(self.model / "config.json", json.dumps(described, indent=1) + "\n")
        return digests

    def load_weights(self, model: nn.Module, checkpoint: str | None = None) -> None:
        """Give a model the weights of `best` or `last`; without a name the exported ones, or those
        of `best` while a run has not ended.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        from seqzoo.runs import tensors

        if checkpoint is None and self.weights.exists():
            tensors.load_weights(self.weights, model)
            return
        name = checkpoint or "best"
        if self.checkpoints.resolve(name) is None:
            raise UserError(f"{self.path}: no {name} checkpoint yet: wait for one, or train again")
        self.checkpoints.load_weights(name, model)

    def save_model(self, model: nn.Module) -> None:
        """Write the weights of the exported model."""
        from seqzoo.runs.tensors import save_weights

        save_weights(model, self.weights)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for a line that a crash cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")
