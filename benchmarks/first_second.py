"""How long short runs take, most of whose time goes into imports and compilation.

    python -m benchmarks.first_second

1. `import djax` against `import optax`, each in new processes. Aim: at most 1.1 times
   as long.
2. 40 gradients of each of 64 asynchronous workers on quadratics: the first run of
   `djax.asynchronous.simulate` in a process against a later run of the same functions
   in the same process. Aim: at most 6 times as long. The same for the first run of a
   second process, which finds the programs of the first process.
3. README's training command: its first start against its second start, which finds the
   programs of the first, simulated and under mpirun. Aim: the second start takes at
   most 0.7 times as long.

Everything is started in turns, with bytecode of an earlier start. Each repeat has a new
folder of compiled programs.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro

from . import contest

ROOT = pathlib.Path(__file__).parent.parent
IMPORT, LATER, SECOND = 1.1, 6.0, 0.7
SIMULATE = """
import json, time
import jax, numpy as np, optax, djax
from experiments.lib import processes
from experiments.lib.quadratics import random_quadratics

processes.keep_compiled()
n, simulate = 64, djax.asynchronous.simulate
problem = random_quadratics(n, 10, 1.0)
own = tuple(np.asarray(x, "f4") for x in (problem.matrices, problem.offsets))
events = djax.asynchronous.draw_events(djax.topologies.ring(n), gradients=40 * n)
adpsgd = djax.adpsgd(optax.sgd(0.01))

def gradient_fn(x, own, batch):
    matrix, offset = own
    return matrix.T @ (matrix @ x - offset), own, ()

seconds = []
for run in range(6):
    x, batches = np.zeros((n, 10), "f4"), np.zeros((n, 40), "f4")
    start = time.perf_counter()
    *_, last = simulate(
        adpsgd, events, x, gradient_fn, lambda epoch: batches, model_state=own
    )
    jax.block_until_ready(last.params)
    seconds.append(time.perf_counter() - start)
print(json.dumps([seconds[0], float(np.median(seconds[1:]))]))
"""
TRAIN = ("-m", "experiments.train", "--runs")


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    repeats: int = 5
    """How often everything is started, after a first time that does not count."""
    only: tuple[str, ...] = ("import", "simulate", "train", "mpirun")
    """What is measured."""


def start(*command: str | os.PathLike, kept: str) -> tuple[float, str]:
    """Runs a command, and returns its seconds and its output.

    Args:
      *command: the command.
      kept: the folder in which the command looks for compiled programs.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": kept}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - begin, result.stdout


def imports(folder: str) -> dict[str, float]:
    """Seconds of processes that only import."""
    return {
        name: start(sys.executable, "-c", f"import {name}", kept=folder)[0]
        for name in ("optax", "djax")
    }


def simulations(folder: str) -> dict[str, float]:
    """Seconds of the simulator's runs in a process, and in a second process."""
    found = {}
    for name in ("first", "first, kept programs"):
        _, output = start(sys.executable, "-c", SIMULATE, kept=folder)
        found[name], later = json.loads(output)
        found.setdefault("later", later)
    return found


def trainings(folder: str, launcher: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of README's command at its first and second start."""
    command = (*launcher, sys.executable, *TRAIN)
    return {
        name: start(*command, f"{folder}/{name}", kept=folder)[0]
        for name in ("first", "second")
    }


def under_mpirun(folder: str) -> dict[str, float]:
    """Seconds of README's command under mpirun."""
    beside = pathlib.Path(sys.executable).parent
    launcher = shutil.which("mpirun", path=beside) or shutil.which("mpirun")
    assert launcher, "no mpirun"
    return trainings(folder, (launcher, "-n", "4"))


PARTS = {
    "import": (imports, [("djax", "optax", IMPORT)]),
    "simulate": (
        simulations,
        [("first", "later", LATER), ("first, kept programs", "later", LATER)],
    ),
    "train": (trainings, [("second", "first", SECOND)]),
    "mpirun": (under_mpirun, [("second", "first", SECOND)]),
}
"""What is measured; which times are divided by which others, and the aims."""


def measure(config: Config) -> list[dict[str, Any]]:
    """Measures all parts in turns; returns a record for each ratio."""
    seconds = {name: [] for name in config.only}
    for repeat in range(config.repeats + 1):
        for name in config.only:
            print(f"{repeat} of {config.repeats}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found = PARTS[name][0](folder)
            if repeat:
                seconds[name].append(found)
    records = []
    for name in config.only:
        for this, other, aim in PARTS[name][1]:
            times = {key: [s[key] for s in seconds[name]] for key in (this, other)}
            ratios = np.divide(times[this], times[other]).tolist()
            records.append(
                {"part": name, "seconds": times, "ratio": ratios, "aim": aim}
            )
    return records


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    records = measure(config)
    rows = [
        [
            f"{record['part']}: {' / '.join(record['seconds'])}",
            *map(contest.spread, record["seconds"].values()),
            contest.spread(record["ratio"]),
            contest.verdict(float(np.median(record["ratio"])), record["aim"]),
        ]
        for record in records
    ]
    columns = ["", "seconds", "seconds", "ratio", "aim"]
    table = ("Short runs: one time divided by another", columns, rows)
    contest.publish("first_second", [table], records, config.output)


if __name__ == "__main__":
    main()
