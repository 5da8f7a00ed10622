"""Times contestants in turns, and publishes their times as a table and as JSON."""

import atexit
import dataclasses
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import rich.console

from djax import communicators
from experiments.lib import figures, report

RESULTS = pathlib.Path(__file__).parent / "results"

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Published:
    """Options of every script."""

    output: pathlib.Path = RESULTS
    """Folder of the JSON file."""


@dataclasses.dataclass(frozen=True)
class Turns(Published):
    """Options of scripts whose contestants run in turns."""

    repeats: int = 7
    """How often each contestant runs, after a first run that compiles."""


def in_turns(
    contestants: Mapping[Name, Callable[[], Any]],
    repeats: int,
    before: Callable[[], Any] = lambda: None,
) -> dict[Name, np.ndarray]:
    """Times contestants one after another, again and again.

    A disturbance that slows the machine down for a while then slows all contestants
    down, and hardly changes ratios of times within one repeat.

    Args:
      contestants: functions, by name. Their time ends when the arrays that they return
        are ready.
      repeats: how often each runs, after a first run that compiles and does not count.
      before: a function that is called before each run and is not timed, such as a
        barrier of all ranks.

    Returns:
      `float64[repeats]` seconds of each contestant.
    """
    seconds = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            if communicators.launcher_rank() == 0:
                doing = f"{repeat} of {repeats}" if repeat else "compiling"
                print(f"{doing}: {name}", file=sys.stderr, flush=True)
            before()
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def compile_once() -> None:
    """Caches compiled programs, because some are compiled again to be inspected."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """The median and the range of values as a text."""
    low, middle, high = np.percentile(np.fromiter(values, float), [0, 50, 100])
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def verdict(value: float, aim: float, *, at_least: bool = False) -> str:
    """The aim as a text, and whether the value meets it."""
    met = value >= aim if at_least else value <= aim
    sign = ">=" if at_least else "<="
    return f"{sign} {aim:g} {'met' if met else 'not met'}"


def publish(
    name: str,
    tables: Sequence[tuple[str, Sequence[str], Iterable[Sequence[Any]]]],
    records: Sequence[Mapping[str, Any]],
    folder: pathlib.Path,
) -> None:
    """Prints tables, and writes the records to JSON with the machine and versions.

    Args:
      name: name of the file, without its suffix.
      tables: title, column heads and rows of each table.
      records: the measurements, one or more for each row.
      folder: folder of the JSON file.
    """
    head = machine()
    versions = [f"{name} {head['versions'][name]}" for name in ("jax", "mpi4jax")]
    place = [head["processor"], f"{head['cores']} cores", *head["devices"], *versions]
    console = rich.console.Console(width=150)
    for title, columns, rows in tables:
        console.print(figures.table(title, columns, rows, ", ".join(place)))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**head, "records": list(records)}, indent=1) + "\n")
    print(f"written: {path}")


def machine() -> dict[str, Any]:
    """The machine, the versions of packages, the commit and the devices."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        **report.provenance(),
    }


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
