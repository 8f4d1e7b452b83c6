"""Runs the cells of an exam: each a `seqzoo train` of its own, some at a time. What was finished
before is read, a cell that fails is said, and the rest runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqzoo.config.values import quoted
from seqzoo.exam.plan import Ability, Cell, Plan, unit
from seqzoo.runs.directory import RunDirectory

FINISHED, FAILED = "finished", "failed"
ENDING = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))  # as Ctrl-C
POLL_SECONDS = 0.05
Name = Callable[[Cell], str]  # a name that is the same for the same configuration only


@dataclass
class Answer:
    """What a cell gave.

    Attributes:
        summary: of its run; {} if that did not finish.
        note: why the run did not finish.
    """

    cell: Cell
    status: str
    folder: Path
    summary: dict[str, Any]
    note: str = ""

    def score(self, metric: str) -> float | None:
        return self.summary.get(metric)


class Cells:
    """All cells of an exam, in one folder.

    Args:
        folder: of the cells' run directories.
        name: of the directory of a cell. One that is finished is not run again.
        show: is given a line for each cell.
    """

    def __init__(
        self, plan: Plan, folder: Path, name: Name, show: Callable[[str], None] = print
    ) -> None:
        self.plan, self.folder, self.name, self.show = plan, folder, name, show
        self.answers: dict[Cell, Answer] = {}
        self.stopped = False

    def measure(self) -> None:
        """Run every cell: a rate each, then the other seeds of the best rate. Ctrl-C ends it
        early, and what is finished is kept."""
        before = {number: signal.signal(number, signal.default_int_handler) for number in ENDING}
        abilities = sorted(self.plan.abilities, key=lambda each: each.timed)
        try:
            for ability in abilities:
                self._run(ability, self.plan.cells(ability))
                self._run(ability, self._further(ability))
        except KeyboardInterrupt:
            self.stopped = True
            self.show("stopped: what was finished is kept")
            for ability in abilities:
                self._read(self.plan.cells(ability))
                self._read(self._further(ability))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _further(self, ability: Ability) -> list[Cell]:
        """The other seeds of each model's best rate; models take turns."""
        best = [self.best(model, ability) for model in self.plan.models]
        others = (self.plan.further(answer.cell) for answer in best if answer is not None)
        return [cell for seed in zip(*others, strict=True) for cell in seed]

    def _read(self, cells: Iterable[Cell]) -> None:
        """Take in the cells that were finished before, without running any."""
        for cell in cells:
            if cell not in self.answers and (answer := self._finished(cell)):
                self.answers[cell] = answer

    def _finished(self, cell: Cell) -> Answer | None:
        """The answer of a cell whose run is finished."""
        folder = self.folder / self.name(cell)
        summary = RunDirectory(folder).summary
        done = summary.get("status") == FINISHED
        return Answer(cell, FINISHED, folder, summary) if done else None

    def best(self, model: str, ability: Ability) -> Answer | None:
        """The first seed of the learning rate with the best score; None where every rate failed."""
        sign = 1 if unit(ability.score)[1] else -1
        scored = [
            (sign * score, -answer.cell.rate, answer)
            for answer in self.answers.values()
            if (answer.cell.model, answer.cell.ability, answer.cell.seed)
            == (model, ability.name, 1)
            and (score := answer.score(ability.score)) is not None
        ]
        return max(scored, key=lambda each: each[:2])[2] if scored else None

    def chosen(self, model: str, ability: Ability) -> list[Answer]:
        """Every seed of the best learning rate that was answered, the first one first."""
        best = self.best(model, ability)
        same = [] if best is None else [best.cell, *self.plan.further(best.cell)]
        return [self.answers[cell] for cell in same if cell in self.answers]

    def _run(self, ability: Ability, cells: Iterable[Cell]) -> None:
        """Run cells, as many at a time as there are workers; of a timed ability one."""
        workers, threads = self._shares(ability)
        waiting = list(cells)
        running: list[tuple[Cell, Path, subprocess.Popen[bytes], float]] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    cell = waiting.pop(0)
                    if answer := self._finished(cell):
                        self._keep(ability, answer)
                        continue
                    folder = self.folder / self.name(cell)
                    try:
                        process = self._start(cell, folder, threads)
                    except OSError as error:
                        reason = f"{type(error).__name__}: {error}"
                        self._keep(ability, Answer(cell, FAILED, folder, {}, reason))
                        continue
                    running.append((cell, folder, process, time.perf_counter()))
                for each in [one for one in running if one[2].poll() is not None]:
                    running.remove(each)
                    cell, folder, process, start = each
                    answer = self._finished(cell)
                    if answer is None:
                        reason = _killed(process.returncode) or _reason(folder)
                        answer = Answer(cell, FAILED, folder, {}, reason)
                    self._keep(ability, answer, f"  ({time.perf_counter() - start:.0f} s)")
                time.sleep(POLL_SECONDS)
        finally:
            for _, _, process, _ in running:
                process.terminate()
            for _, _, process, _ in running:
                process.wait()

    def _shares(self, ability: Ability) -> tuple[int, int]:
        """Cells at a time, and threads of each."""
        from seqzoo.training.device import pick_device  # loads torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        device = pick_device(self.plan.settings.device, "exam.device")
        workers = self.plan.settings.workers or (cores if device.type == "cpu" else 1)
        workers = 1 if ability.timed else workers
        return workers, max(1, cores // workers)

    def _start(self, cell: Cell, folder: Path, threads: int) -> subprocess.Popen[bytes]:
        """A process that trains a cell from its beginning."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "seqzoo", "train", *self.plan.overrides(cell)]
        command += [f"trainer.threads={threads}", f"hydra.run.dir={quoted(str(folder))}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with _log(folder).open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone
            )

    def _keep(self, ability: Ability, answer: Answer, took: str = "") -> None:
        """Take in an answer, and show it."""
        score = answer.score(ability.score)
        if answer.status == FINISHED and score is None:
            reason = f"its summary has no {ability.score}, the score of {ability.name}"
            answer = Answer(answer.cell, FAILED, answer.folder, {}, reason)
        self.answers[answer.cell] = answer
        value = f"{score:.4g} {unit(ability.score)[0]}".rstrip() if score is not None else ""
        self.show(f"{answer.cell}: {value or f'{FAILED}: {answer.note}'}{took}")


def _log(folder: Path) -> Path:
    """What the process of a cell printed."""
    return folder.with_name(f"{folder.name}.log")


def _killed(status: int) -> str:
    """Why a process ended that a signal ended; of another one, nothing."""
    if status >= 0:
        return ""
    perhaps = ", perhaps for its memory: give exam.workers=1" if status == -signal.SIGKILL else ""
    return f"killed by signal {-status}{perhaps}"


def _reason(folder: Path) -> str:
    """Why a cell did not finish, in a line."""
    if error := str(RunDirectory(folder).summary.get("error", "")).strip():
        return error.splitlines()[-1]
    try:
        lines = _log(folder).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no word"
