"""Contestants that run in turns, and the table and the JSON of what they took."""

import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from experiments.common import figures, report

RESULTS = pathlib.Path(__file__).parent / "results"


def in_turns(
    contestants: Mapping[Any, Callable[[], Any]], repeats: int
) -> dict[Any, np.ndarray]:
    """Times contestants one after another, again and again.

    What disturbs the machine for a while thus disturbs all of them, and ratios within
    one repeat hardly.

    Args:
      contestants: what each does; it returns arrays, which are waited for.
      repeats: how often, after once that compiles.

    Returns:
      `float64[repeats]` seconds of each.
    """
    seconds = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """The median, and from where to where the values reach."""
    low, middle, high = np.percentile(np.fromiter(values, float), [0, 50, 100])
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def publish(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    records: Sequence[Mapping[str, Any]],
    folder: pathlib.Path,
) -> None:
    """Prints the table, and writes the records with what they were made by.

    Args:
      name: of the file, without its suffix.
      title: above the table.
      columns: heads of the table.
      rows: of the table.
      records: what was measured.
      folder: where the JSON goes.
    """
    head = machine()
    caption = ", ".join(
        [head["processor"], f"{head['cores']} cores"]
        + [f"{package} {head['versions'][package]}" for package in ("jax", "mpi4jax")]
    )
    table = figures.table(title, columns, rows, caption)
    rich.console.Console(width=120).print(table)
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
