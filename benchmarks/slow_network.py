"""Time of training steps over slow networks, which are emulated on one machine.

    sudo env "PATH=$PATH" python -m benchmarks.slow_network

Four ranks train a ResNet-20 of twice its usual width over TCP. The loopback device of a
separate network namespace lets 100 Mbit, 1 Gbit or 10 Gbit pass in a second, and all
ranks share it as one link. The table shows the time of a whole step, gradient and SGD
included, and the time of the mechanism alone.

Two contestants average after every 20th step only: DiLoCo, and DiLoCo with PowerGossip
in place of the exact average. Their times are means over 20 steps.

Aim: at 100 Mbit, PowerGossip of rank 1 takes at most 1/20 of gossip's own time, and
DiLoCo at most 1/15 of all-reduce's.

Linux only, with `unshare`, `ip` and `tc` (Debian: util-linux, iproute2), and as root.
"""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import djax
from djax import communicators, topologies
from experiments.lib import models

from . import contest, field, images, slow_link

# At 100 Mbit, the share of another mechanism's own time that is allowed at most.
AIMS = {"power_gossip, rank 1": ("gossip", 1 / 20), "DiLoCo": ("all_reduce", 1 / 15)}
PERIOD = 20  # Steps between two averagings of DiLoCo.
NETWORK = models.resnet(10, depth=20, width=2.0)
BATCH_SIZE, SIZE = 16, 32  # Images of a rank in a step, and their width.
CONTESTANTS = (
    "none",
    "all_reduce",
    "gossip",
    "relay",
    "choco_gossip, sign",
    "power_gossip, rank 1",
    "DiLoCo",
    "PowerGossip-DiLoCo",
)


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    workers: int = 4
    """Number of ranks."""
    megabits: tuple[int, ...] = (100, 1000, 10000)
    """Bandwidths of the link, in Mbit/s."""
    seconds: float = 2.0
    """Approximate seconds of a run; a run has at least 2 steps."""
    repeats: int = 3
    """How often each contestant runs, after a first run that compiles."""
    measure_into: pathlib.Path | None = None
    """File for the records of a rank. The script starts its ranks with this option."""


class Program:
    """Runs of one mechanism.

    Attributes:
      steps: the number of steps of a run, a multiple of `least`.
      least: the number of steps after which the mechanism repeats itself.

    Args:
      mechanism: the mechanism that is timed.
      communicator: connects the ranks.
      train: whether a step has a gradient and SGD, too.
    """

    def __init__(self, mechanism, communicator, train: bool):
        """Makes the program of a step."""
        self.communicator = communicator
        base = optax.sgd(1e-3) if train else optax.set_to_zero()
        optimizer = optax.chain(base, mechanism)
        params, model_state = images.start(NETWORK, SIZE)
        gradient_fn = images.make_gradient(NETWORK)
        data = images.batch((BATCH_SIZE,), SIZE)

        @communicator.spmd
        def step(params, state):
            grads = gradient_fn(params, model_state, data)[0] if train else params
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def make_steps(params, state, count):
            if train:
                return step(params, state)
            return jax.lax.fori_loop(0, count, lambda _, c: step(*c), (params, state))

        self.train = train
        self.make_steps = jax.jit(make_steps, donate_argnums=(0, 1))
        self.params = communicators.replicate(communicator, params)
        self.state = jax.jit(communicator.spmd(optimizer.init))(self.params)
        rarely = getattr(mechanism, "name", None) == "outer"
        self.steps = self.least = PERIOD if rarely else 1

    def __call__(self):
        """Runs some steps, and waits for all ranks."""
        # A call of a program takes milliseconds, which would count with each step of a
        # mechanism alone. But in a loop, XLA computes convolutions slowly on CPUs.
        calls, steps = (self.steps, 1) if self.train else (1, self.steps)
        for _ in range(calls):
            self.params, self.state = self.make_steps(self.params, self.state, steps)
        jax.block_until_ready(self.params)
        self.communicator.host_comm.Barrier()
        return ()


def measure(config: Config) -> list[dict[str, Any]]:
    """Times every mechanism on one of the ranks; returns a record for each."""
    communicator: Any = communicators.mpi()
    barrier = communicator.host_comm.Barrier
    known = field.mechanisms(communicator) | diloco(communicator)
    mechanisms = {name: known[name] for name in CONTESTANTS}
    contestants = {
        (name, train): Program(mechanism, communicator, train)
        for train in (False, True)
        for name, mechanism in mechanisms.items()
    }
    once = contest.in_turns(contestants, 1, barrier)
    for key, program in contestants.items():
        needed = int(config.seconds / once[key][0])
        needed = communicator.host_comm.bcast(min(max(needed, 1), 100))
        program.steps = program.least * max(needed, 2 if program.least == 1 else 1)
    times = contest.in_turns(contestants, config.repeats, barrier)
    params, _ = images.shapes(NETWORK, SIZE)
    graph = topologies.ring(config.workers)
    records = []
    for name, mechanism in mechanisms.items():
        cost = djax.communication_cost(mechanism, params, graph)
        seconds = {
            train: (times[name, train] / contestants[name, train].steps).tolist()
            for train in (False, True)
        }
        records.append(
            {
                "mechanism": name,
                "ranks": config.workers,
                "step": seconds[True],
                "alone": seconds[False],
                "bytes": sum(cost.bytes_per_step),
                "messages": max(cost.messages_per_step),
            }
        )
    return records


def diloco(communicator: djax.Communicator) -> dict[str, djax.Mechanism]:
    """The mechanisms that average after every 20th step only, by name."""
    nesterov = optax.sgd(0.7, 0.9, nesterov=True)
    ring = topologies.ring(communicator.size)
    inner = {
        "DiLoCo": djax.all_reduce(communicator),
        "PowerGossip-DiLoCo": djax.power_gossip(ring, communicator),
    }
    return {name: djax.outer(PERIOD, nesterov, each) for name, each in inner.items()}


def run(config: Config, megabits: int, programs: str) -> list[dict[str, Any]]:
    """Starts the ranks behind a slow device; returns their records.

    Args:
      config: the options of the command line.
      megabits: bandwidth of the device, in Mbit/s.
      programs: folder of compiled programs, which all bandwidths share.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records.json"
        slow_link.run_behind(
            megabits,
            config.workers,
            *("benchmarks.slow_network", "--measure-into", str(path)),
            *("--seconds", str(config.seconds), "--repeats", str(config.repeats)),
            *("--workers", str(config.workers)),
            JAX_COMPILATION_CACHE_DIR=programs,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        return [{"megabits": megabits, **r} for r in json.loads(path.read_text())]


def draw(records: list[dict[str, Any]]) -> Figure:
    """Draws the time of a step against the bandwidth."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(record["mechanism"] for record in records):
        mine = [record for record in records if record["mechanism"] == name]
        axes.plot(
            [record["megabits"] for record in mine],
            [np.median(record["step"]) for record in mine],
            marker="o",
            label=name,
            linestyle="--" if name == "none" else "-",
        )
    axes.set(xscale="log", yscale="log", xlabel="Mbit/s of the line that all share")
    axes.set(ylabel="seconds a step", title="ResNet-20 x 2, 4 ranks")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    if slow_link.is_done("slow_network", config, measure):
        return
    with tempfile.TemporaryDirectory() as programs:
        found = [run(config, megabits, programs) for megabits in config.megabits]
    records = [record for some in found for record in some]
    tables = []
    for megabits in config.megabits:
        mine = [r for r in records if r["megabits"] == megabits]
        alone = {r["mechanism"]: np.array(r["alone"]) for r in mine}
        rows = []
        for record in mine:
            name = record["mechanism"]
            share = np.median(alone[name] / alone["gossip"])
            times = 1e3 * np.array([record["step"], record["alone"]])
            sent = f"{record['bytes'] / 1e6:.3f}"
            met = None
            if megabits == 100 and name in AIMS:
                peer, aim = AIMS[name]
                met = contest.verdict(np.median(alone[name] / alone[peer]), aim)
            rows.append([name, *map(contest.spread, times), f"{share:.3f}", sent, met])
        columns = ["", "step, ms", "alone, ms", "/ gossip", "MB of all", "aim"]
        title = f"{megabits} Mbit/s, {config.workers} ranks"
        tables.append((title, columns, rows))
    contest.publish("slow_network", tables, records, config.output)
    draw(records).savefig(config.output / "slow_network.png", dpi=150)


if __name__ == "__main__":
    main()
