"""Rounds over all points, each point in a process of its own; what is left out, and why."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from seqzoo.bench import measure, results
from seqzoo.bench.plan import Plan, Point
from seqzoo.errors import UserError, is_out_of_memory

OK, MEMORY, SLOW, FAILED, SKIPPED = "ok", "out of memory", "too slow", "failed", "skipped"
REFUSED = "refused"  # by a UserError
START_SECONDS = 60  # a process may take that long beside its measurement
SURVEY_SECONDS = 300


class Server:
    """Runs functions in fresh processes.

    They are forked from one that has torch loaded and has computed nothing. So each starts in some
    hundredths of a second, and none inherits threads, memory or caches of another.
    """

    def __init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload([measure.__name__])
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must not end the server
            forkserver.ensure_running()
            signal.signal(signal.SIGINT, before)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float) -> tuple[str, Any]:
        """How the call ended, and its result, or the reason if it did not end well."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_call, args=(theirs, function, args), daemon=True)
        process.start()
        theirs.close()
        try:
            answer = ours.recv() if ours.poll(timeout) else (SLOW, f"more than {timeout:.0f} s")
        except EOFError:  # the process ended without an answer
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            answer = (MEMORY, "killed") if killed else (FAILED, f"exit status {process.exitcode}")
        finally:
            process.kill()
            process.join()
            ours.close()
        return answer


def _call(to: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the child process: send how the call ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        answer = OK, function(*args)
    except measure.TooSlow as error:
        answer = SLOW, str(error)
    except UserError as error:
        answer = REFUSED, str(error)
    except Exception as error:
        memory = is_out_of_memory(error)
        reason = str(error).splitlines()[0] if memory and str(error) else traceback.format_exc()
        answer = MEMORY if memory else FAILED, reason
    to.send(answer)


def run(plan: Plan, command: str) -> dict[str, Any]:
    """Measure a plan. Ctrl-C ends it early, and what was measured so far is kept.

    Args:
        command: the command line, which the results show.

    Returns:
        The content of bench.json: `command`, `date`; `bench`, the settings; `machine`; `models`, a
        survey of each; `points`, a row for each of `plan.points()`, and `exponents`, see `results`;
        `rounds_done`, the rounds that were measured to the end; `seconds`.

    Raises:
        UserError: the device is not on this machine.
        RuntimeError: a model cannot be built.
    """
    date = datetime.now().isoformat(timespec="minutes", sep=" ")
    server = Server()
    machine = _survey_machine(server, plan)
    models = {name: _survey_model(server, plan, name) for name in plan.models}
    rounds = Rounds(server, plan, {name: about["keys"] for name, about in models.items()})
    start = time.perf_counter()
    rounds.measure()
    seconds = time.perf_counter() - start
    measured = [{**asdict(at), **asdict(result)} for at, result in rounds.results.items()]
    points = results.summarise(measured, models, machine["peak_flops"])
    return {
        "command": command,
        "date": date,
        "bench": plan.record(),
        "machine": machine,
        "models": models,
        "points": points,
        "rounds_done": rounds.done,
        "seconds": seconds,
        "exponents": list(results.exponents(points, models)),
    }


def _survey_machine(server: Server, plan: Plan) -> dict[str, Any]:
    machine = _need(server.run(measure.machine, plan.settings, timeout=SURVEY_SECONDS), "machine")
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    speed = f"matrix products at {machine['peak_flops'] / 1e9:,.0f} GFLOP/s"
    show(f"{machine['name']}{threads}, {machine['dtype']}: {speed}")
    return machine


def _survey_model(server: Server, plan: Plan, name: str) -> dict[str, Any]:
    from seqzoo.models.width import off_by

    call = (measure.survey, plan.models[name], plan.settings)
    about = _need(server.run(*call, timeout=SURVEY_SECONDS), name)
    found = about["parameters"]
    note = off_by(found, plan.settings.parameters)
    show(f"  {name:<20} {found:>12,} parameters, dim {about['keys']['dim']}{note}")
    return about


def _need(answer: tuple[str, Any], what: str) -> dict[str, Any]:
    status, result = answer
    if status == REFUSED:
        raise UserError(result)
    if status != OK:
        raise RuntimeError(f"{what}: {status}: {result}")
    return dict(result)


@dataclass
class Result:
    """What was measured of a point: an item of `rounds` for each round."""

    status: str = OK
    note: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)


class Rounds:
    """Measures every point once a round.

    Where a point fails in its first round, the longer ones of its model and mode are left out.
    """

    def __init__(self, server: Server, plan: Plan, keys: dict[str, dict[str, Any]]) -> None:
        self.server, self.settings, self.keys = server, plan.settings, keys
        self.results = {at: Result() for at in plan.points()}
        self.failed: dict[tuple[str, str], Point] = {}  # the first failure of a model's mode
        self.done = 0

    def measure(self) -> None:
        """Measure all rounds, or as many as there are before Ctrl-C or SIGTERM."""
        start, rounds = time.perf_counter(), self.settings.rounds
        with _sigterm_as_ctrl_c(), _bar(rounds * sum(map(_weight, self.results))) as bar:
            try:
                for number in range(1, rounds + 1):
                    for at in self.results:
                        place = f"round {number}  {at.model} {at.mode} T={at.length:,}"
                        bar.set_description_str(place)
                        self._measure_point(at, number)
                        bar.update(_weight(at))
                    self.done = number
                    took = time.perf_counter() - start
                    show(f"round {number} of {rounds} done after {took:.0f} s")
            except KeyboardInterrupt:
                show("stopped: what was measured so far is kept")
                for result in self.results.values():
                    if result.status == OK and not result.rounds:
                        result.status, result.note = SKIPPED, "interrupted"

    def _measure_point(self, at: Point, number: int) -> None:
        result, first = self.results[at], self.failed.get((at.model, at.mode))
        if first == at:
            return
        if first is not None and at.length >= first.length:
            result.status = SKIPPED
            result.note = f"{self.results[first].status} at T={first.length:,}"
            return
        limit = START_SECONDS + 10 * self.settings.max_step_seconds
        call = (measure.point, at, self.keys[at.model], self.settings)
        status, found = self.server.run(*call, timeout=limit)
        if status == OK:
            result.rounds.append(found)
        elif result.rounds:  # it succeeded before: the point has fewer rounds
            result.note = f"round {number} {status}"
        else:
            result.status, result.note = status, found
            self.failed[at.model, at.mode] = at
            show(f"{at.model} {at.mode} T={at.length:,}: {status}: {found}")


def show(text: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bar(total: float) -> Any:
    return tqdm(
        total=total,
        disable=not sys.stderr.isatty(),
        bar_format="{percentage:3.0f}%|{bar:24}| {desc}  {elapsed}, {remaining} left",
        leave=False,
    )


def _weight(at: Point) -> float:
    return 1 + at.length / 2048 * (at.mode != "decode")
