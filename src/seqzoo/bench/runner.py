"""Rounds of points, each in a process of its own; what is left out, and why."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from seqzoo.bench import measure
from seqzoo.bench.plan import Plan, Point
from seqzoo.errors import UserError

OK, MEMORY, SLOW, FAILED, SKIPPED = "ok", "out of memory", "too slow", "failed", "skipped"


class Server:
    """Runs functions in fresh processes. They are forked from one that has torch loaded and has
    computed nothing, so each starts in some hundredths of a second and none inherits threads,
    memory or caches of another."""

    def __init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload([measure.__name__])
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is not the server's
            forkserver.ensure_running()
            signal.signal(signal.SIGINT, before)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float) -> tuple[str, Any]:
        """How it ended, and its result or what there is to say."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_answer, args=(theirs, function, args), daemon=True)
        process.start()
        theirs.close()
        try:
            answer = ours.recv() if ours.poll(timeout) else (SLOW, f"more than {timeout:.0f} s")
        except EOFError:  # it died without a word
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            answer = (MEMORY, "killed") if killed else (FAILED, f"exit status {process.exitcode}")
        finally:
            process.kill()
            process.join()
            ours.close()
        return answer


def _answer(to: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    try:
        answer = OK, function(*args)
    except measure.TooSlow as error:
        answer = SLOW, str(error)
    except UserError as error:
        answer = "refused", str(error)
    except Exception as error:
        memory = isinstance(error, MemoryError) or "memory" in str(error).lower()
        said = str(error).splitlines()[0] if memory and str(error) else traceback.format_exc()
        answer = MEMORY if memory else FAILED, said
    to.send(answer)


def run(plan: Plan) -> dict[str, Any]:
    """Measure everything; Ctrl-C ends it early, with what there is.

    Returns:
        `machine`, `models` (a survey of each) and `points`: one for each of `plan.points()` with
        its `status`, a `note`, and `rounds`, what `measure.point` returned in each round; and
        `rounds_done`, those that were gone through to the end.

    Raises:
        UserError: a device that is not there.
        RuntimeError: a model that cannot be built.
    """
    server = Server()
    settings = plan.settings
    machine = _need(server.run(measure.machine, settings, timeout=300), "the machine")
    dtype, peak = machine["dtype"], machine["peak_flops"] / 1e9
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    tell(f"{machine['name']}{threads}, {dtype}: matrix products at {peak:,.0f} GFLOP/s")
    models: dict[str, Any] = {}
    for name, keys in plan.models.items():
        models[name] = _need(server.run(measure.survey, keys, settings, timeout=300), name)
        about = models[name]
        asked = settings["parameters"] or about["parameters"]
        off = about["parameters"] / asked - 1
        said = f" ({off:+.0%} of what was asked for)" if abs(off) > 0.1 else ""
        tell(
            f"  {name:<20} {about['parameters']:>12,} parameters, dim {about['keys']['dim']}{said}"
        )

    points = {at: {"status": OK, "note": "", "rounds": []} for at in plan.points()}
    ended: dict[tuple[str, str], Point] = {}  # where a model's mode stopped
    total = settings["rounds"] * sum(map(_weight, points))
    bar = tqdm(
        total=total,
        disable=not sys.stderr.isatty(),
        bar_format="{percentage:3.0f}%|{bar:24}| {desc}  {elapsed}, {remaining} left",
        leave=False,
    )
    begun, done = time.perf_counter(), 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number in range(settings["rounds"]):
            for at, found in points.items():
                bar.set_description_str(f"round {number + 1}  {at.model} {at.mode} T={at.length:,}")
                stop = ended.get((at.model, at.mode))
                if stop is None or at.length < stop.length:
                    limit = 60 + 10 * settings["max_step_seconds"]
                    keys = models[at.model]["keys"]
                    status, result = server.run(measure.point, at, keys, settings, timeout=limit)
                    if status == OK:
                        found["rounds"].append(result)
                    elif found["rounds"]:  # it went well before: fewer rounds of it
                        found["note"] = f"round {number + 1} {status}"
                    else:
                        found.update(status=status, note=result)
                        ended[at.model, at.mode] = at
                        tell(f"{at.model} {at.mode} T={at.length:,}: {status}: {result}")
                elif at != stop:
                    reason = f"{points[stop]['status']} at T={stop.length:,}"
                    found.update(status=SKIPPED, note=reason)
                bar.update(_weight(at))
            took, done = time.perf_counter() - begun, number + 1
            tell(f"round {number + 1} of {settings['rounds']} done after {took:.0f} s")
    except KeyboardInterrupt:
        tell("stopped: what was measured so far is kept")
        for found in points.values():
            if found["status"] == OK and not found["rounds"]:
                found.update(status=SKIPPED, note="interrupted")
    finally:
        signal.signal(signal.SIGTERM, before)
        bar.close()
    return {
        "machine": machine,
        "models": models,
        "points": [{**vars(at), **found} for at, found in points.items()],
        "rounds_done": done,
        "seconds": time.perf_counter() - begun,
    }


def tell(text: str) -> None:
    """A line above the bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def _need(answer: tuple[str, Any], what: str) -> dict[str, Any]:
    status, result = answer
    if status == "refused":
        raise UserError(result)
    if status != OK:
        raise RuntimeError(f"{what}: {status}: {result}")
    return dict(result)


def _weight(at: Point) -> float:
    """What a point takes of the bar."""
    return 1 + at.length / 2048 * (at.mode != "decode")
