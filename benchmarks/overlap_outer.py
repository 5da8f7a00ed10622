"""How much an outer optimizer slows local steps down, with and without delay.

    sudo env "PATH=$PATH" python -m benchmarks.overlap_outer

Two ranks with 2 million parameters make local steps of SGD with momentum, and average
their models after every 20th step by DiLoCo. They share a link of 200 Mbit/s, over
which the average of all parameters takes about two thirds of a second. A gradient waits
for 100 ms, which stands for a GPU that leaves the CPU free.

*No outer steps* are the local steps alone. *No messages* are the steps of ranks that do
the same as DiLoCo, but average with nobody. Without delay, the ranks wait for the
average. With a delay of 10 steps, it travels while gradients are computed.

Aim: with delay, at least 0.95 of the local steps per second without messages.

Linux only, and as root, like `slow_network`.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import djax
from djax import communicators

from . import contest, slow_link

AIM = 0.95
PERIOD, DELAY = 20, 10
SHAPE = (1000, 1000)  # Of each of two parameters.
NONE = "no messages"
BEHIND = f"delay of {DELAY} steps"


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    megabits: int = 200
    """Bandwidth of the link, in Mbit/s."""
    wait: float = 0.1
    """Seconds of a gradient."""
    measure_into: pathlib.Path | None = None
    """File for the records of a rank. The script starts its ranks with this option."""


class Run:
    """Local steps of one contestant.

    Args:
      config: the options of the command line.
      outer: the outer optimizer; None for local steps alone.
    """

    def __init__(self, config: Config, outer: djax.Mechanism | None):
        """Compiles nothing yet."""
        self._config = config
        params = [jnp.zeros(SHAPE) for _ in range(2)]
        links = [optax.sgd(1e-3, momentum=0.9), *([] if outer is None else [outer])]
        optimizer = optax.chain(*links)
        self._carry = params, jax.jit(optimizer.init)(params)
        self._grads = jax.tree.map(jnp.ones_like, params)

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=0)
        self._first = True

    def __call__(self) -> Any:
        """Makes the steps of one period.

        A few steps more in the first run make each later run send after its fifth step,
        and end after the outer step. Otherwise messages would travel between runs.
        """
        more, self._first = (PERIOD - 5) * self._first, False
        for _ in range(PERIOD + more):
            time.sleep(self._config.wait)
            self._carry = jax.block_until_ready(self._step(self._carry, self._grads))
        return self._carry


def measure(config: Config) -> list[dict[str, Any]]:
    """Measures all contestants on one of the ranks; returns a record for each."""
    communicator: Any = communicators.mpi()
    from mpi4py import MPI

    def diloco(workers, delay=0):
        nesterov = optax.sgd(0.7, 0.9, nesterov=True)
        return djax.outer(PERIOD, nesterov, djax.all_reduce(workers), delay=delay)

    outers = {
        "no outer steps": None,
        NONE: diloco(communicators.mpi(MPI.COMM_SELF)),
        "no delay": diloco(communicator),
        BEHIND: diloco(communicator, DELAY),
    }
    runs = {name: Run(config, outer) for name, outer in outers.items()}
    barrier = communicator.host_comm.Barrier
    seconds = contest.in_turns(runs, config.repeats, barrier)
    records = []
    for name, times in seconds.items():
        ratio = float(np.median(seconds[NONE] / times))
        rates = (PERIOD / times).tolist()
        aim = AIM if name == BEHIND else None
        records.append(
            {"averaging": name, "steps per second": rates, "ratio": ratio, "aim": aim}
        )
    return records


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    if slow_link.is_done("overlap_outer", config, measure):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records.json"
        slow_link.run_behind(
            *(config.megabits, 2, "benchmarks.overlap_outer"),
            *("--measure-into", str(path), "--repeats", str(config.repeats)),
            *("--wait", str(config.wait)),
        )
        records = json.loads(path.read_text())
    rows = [
        [
            record["averaging"],
            contest.spread(record["steps per second"]),
            f"{record['ratio']:.3f}",
            record["aim"]
            and contest.verdict(record["ratio"], record["aim"], at_least=True),
        ]
        for record in records
    ]
    title = f"DiLoCo, 2 workers, 2 million parameters, {config.megabits} Mbit/s"
    columns = ["averaging", "local steps a second", "ratio", "aim"]
    contest.publish("overlap_outer", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
