"""Races of djax against NumPy, PyTorch and decent-bench.

    python -m benchmarks.races --peer numpy
    uv run --extra torch python -m benchmarks.races --peer torch
    uv run --isolated --python 3.13 --no-default-groups --extra experiments \\
        --with decent-bench python -m benchmarks.races --peer decent_bench
    python -m benchmarks.races --peer numpy --races quadratics sweep

A race is a short run, as one makes while trying something out. All races but the last
simulate workers on one device:

* *quadratics*: D-PSGD on random quadratics with 10 parameters, on rings of 16, 64 and
  256 workers;
* *mlp*: D-PSGD of an MLP with 101,770 parameters on synthetic images, 16 workers;
* *local_steps*, *local_steps_mlp*: the same two tasks with an average after every 20th
  step only;
* *asynchronous*: AD-PSGD with 64 workers and 40 gradients each;
* *sweep*: D-PSGD with 16 workers on a grid of 8 learning rates and 8 seeds;
* *gossip*: two processes average the 11.7 million parameters of a ResNet-18, by MPI
  against gloo.

NumPy takes part in those with a gradient that one writes down by hand, decent-bench in
the first, and PyTorch in all. The peers' programs have all workers in one array, as
somebody writes them who knows the library; decent-bench has its own agents.

Every contestant is a process of its own (`benchmarks.races.contestant`), in which the
other library is not imported. The race begins with a check that both have found the
same result. Then the following is measured, in turns:

* *a step*: the time of a run after the first one, divided by its steps; of asynchronous
  runs, by all workers' gradients. Aim: djax takes at most as long as the peer.
* *whole*: the time of a new process from its start to its end, with a single run in it;
  imports and compilation are included. Aim: djax takes at most 3 times as long.
* *MB*: the largest memory of that process; of two processes, the first's. No aim.

The results of races that are not run stay in `results/races_<peer>.json`, if the
machine and the versions are the same.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Literal

import numpy as np
import tyro

from .. import contest
from . import contestant, problems

PYTHON = [sys.executable]  # Starts a contestant; tests start copies of a process.
FASTER = 1.0
WHOLE = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contest.Published):
    """The options of the command line."""

    peer: Literal["numpy", "torch", "decent_bench"]
    """The library that djax races against."""
    races: tuple[str, ...] = ()
    """Which races are run, by the names above; by default all."""
    repeats: int = 7
    """How often each contestant runs, after a first run that compiles."""
    starts: int = 3
    """How often each contestant is started, after a first start that fills caches."""
    smoke: bool = False
    """Use tiny sizes, to see in seconds that the script runs; results mean nothing."""


class Contestant:
    """A process that runs one side of a race whenever it is asked to.

    Args:
      side: the library.
      race: the race.
      folder: where the file of the problem is, and where results are written.
    """

    def __init__(self, side: str, race: problems.Race, folder: pathlib.Path):
        """Starts the process, which makes a first run."""
        self.result = folder / f"{side}.npy"
        launcher = ["mpirun", "-n", str(race.ranks)] if race.ranks else []
        arguments = side, race.function, str(folder / "problem.npz"), str(self.result)
        # The first run is to compile, even where other programs find what is compiled;
        # but later starts find the bytecode of the first.
        environment = os.environ.copy()
        for name in ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [*launcher, *PYTHON, "-m", contestant.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout

    def read(self) -> str:
        """Waits for a line from the process."""
        line = self._output.readline().strip()
        if not line:
            raise RuntimeError(f"{self.result.stem} has failed; its error is above.")
        return line

    def run(self) -> None:
        """Makes another run, and waits for its end."""
        print(file=self._input, flush=True)
        self.read()

    def end(self) -> float:
        """Ends the process; returns its largest memory in MB."""
        with self._process:
            self._input.close()
            return int(self.read()) / 1e3


def whole(side: str, race: problems.Race, folder: pathlib.Path) -> float:
    """Starts a process that makes a single run; returns its memory in MB."""
    started = Contestant(side, race, folder)
    started.read()
    return started.end()


def check(race: problems.Race, sides: tuple[str, str], folder: pathlib.Path) -> None:
    """Raises AssertionError unless both sides of a race have found the same result."""
    djax, peer = (np.load(folder / f"{side}.npy") for side in sides)
    largest = np.abs(peer).max()
    np.testing.assert_allclose(
        djax, peer, rtol=0, atol=race.tolerance * largest, err_msg=race.title
    )
    if not largest > 0:
        raise AssertionError(f"{race.title}: nothing was computed.")


def measure(config: Config, race: problems.Race) -> dict[str, Any]:
    """Runs one race; returns its record."""
    sides, memory = ("djax", config.peer), {}
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        np.savez(folder / "problem.npz", **race.arrays())
        started = {side: Contestant(side, race, folder) for side in sides}
        for process in started.values():
            process.read()
        check(race, sides, folder)
        runs = {side: started[side].run for side in sides}
        steps = contest.in_turns(runs, config.repeats)
        for process in started.values():
            process.end()

        def start(side):
            memory.setdefault(side, []).append(whole(side, race, folder))

        starts = {side: functools.partial(start, side) for side in sides}
        wholes = contest.in_turns(starts, config.starts)
    measured = {
        "microseconds": {side: 1e6 * steps[side] / race.steps for side in sides},
        "seconds": wholes,
        "megabytes": {side: np.array(memory[side][1:]) for side in sides},
    }
    return {
        "race": race.title,
        "peer": f"{config.peer} {importlib.metadata.version(config.peer)}",
        "commit": contest.machine()["commit"],
        "steps": race.steps,
        **{
            f"{key}, {side}": values.tolist()
            for key, found in measured.items()
            for side, values in found.items()
        },
        "faster": (steps[config.peer] / steps["djax"]).tolist(),
        "longer": (wholes["djax"] / wholes[config.peer]).tolist(),
    }


def kept(path: pathlib.Path, titles: set[str]) -> list[dict[str, Any]]:
    """The records of other races that were made here before, with these versions."""
    if not path.exists():
        return []
    old, here = json.loads(path.read_text()), contest.machine()
    if any(old[key] != here[key] for key in here.keys() - {"commit"}):
        return []
    return [record for record in old["records"] if record["race"] not in titles]


def row(record: dict[str, Any], peer: str) -> list[str]:
    """A row of the table."""

    def both(key):
        medians = [np.median(record[f"{key}, {side}"]) for side in ("djax", peer)]
        return " / ".join(f"{median:.3g}" for median in medians)

    faster, longer = record["faster"], record["longer"]
    return [
        record["race"],
        both("microseconds"),
        contest.spread(faster, 2),
        contest.verdict(np.median(faster), FASTER, at_least=True),
        both("seconds"),
        contest.spread(longer, 2),
        contest.verdict(np.median(longer), WHOLE),
        both("megabytes"),
    ]


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    known = problems.races(config.peer, config.smoke)
    if unknown := set(config.races) - known.keys():
        raise SystemExit(f"races: no {unknown} against {config.peer}; {list(known)}.")
    if importlib.util.find_spec(config.peer) is None:
        raise SystemExit(
            f"races: {config.peer} is not installed; the first lines of --help say how."
        )
    chosen = [race for name in config.races or known for race in known[name]]
    name = f"races_{config.peer}"
    path = config.output / f"{name}.json"
    records = kept(path, {race.title for race in chosen})
    for race in chosen:
        print(f"race: {race.title}", file=sys.stderr, flush=True)
        records.append(measure(config, race))
    order = [race.title for races in known.values() for race in races]
    records.sort(key=lambda record: order.index(record["race"]))
    columns = [f"djax / {config.peer}", "µs a step", "times as fast", "aim"]
    columns += ["whole, s", "times as long", "aim", "MB"]
    rows = [row(record, config.peer) for record in records]
    title = f"djax / {config.peer}: a step; a new process with one run"
    contest.publish(name, [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
