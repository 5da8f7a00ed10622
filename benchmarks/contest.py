"""Contestants that run in turns, and the table and the JSON of what they took."""

import atexit
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


def in_turns(
    contestants: Mapping[Name, Callable[[], Any]],
    repeats: int,
    before: Callable[[], Any] = lambda: None,
) -> dict[Name, np.ndarray]:
    """Times contestants one after another, again and again.

    What disturbs the machine for a while thus disturbs all of them, and ratios within
    one repeat hardly.

    Args:
      contestants: what each does; it returns arrays, which are waited for.
      repeats: how often, after once that compiles.
      before: done before each, outside of its time, such as a barrier of all ranks.

    Returns:
      `float64[repeats]` seconds of each.
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
    """Keeps compiled programs, for those that are compiled again to be inspected."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """The median, and from where to where the values reach."""
    low, middle, high = np.percentile(np.fromiter(values, float), [0, 50, 100])
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def verdict(value: float, aim: float, *, at_least: bool = False) -> str:
    """The aim, and whether the value meets it."""
    met = value >= aim if at_least else value <= aim
    sign = ">=" if at_least else "<="
    return f"{sign} {aim:g} {'met' if met else 'not met'}"


def publish(
    name: str,
    tables: Sequence[tuple[str, Sequence[str], Iterable[Sequence[Any]]]],
    records: Sequence[Mapping[str, Any]],
    folder: pathlib.Path,
) -> None:
    """Prints tables, and writes the records with what they were made by.

    Args:
      name: of the file, without its suffix.
      tables: title, heads of the columns, and rows of each.
      records: what was measured.
      folder: where the JSON goes.
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
    """The machine and the versions of what runs on it."""
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
