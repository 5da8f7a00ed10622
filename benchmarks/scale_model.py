r"""Predicts the time of a step for up to 4,096 workers on fast networks.

    python -m benchmarks.scale_model                    # measures a gradient here
    python -m benchmarks.scale_model --gradient-ms 100  # or takes a given time

A worker computes a gradient in :math:`t` seconds and then sends messages. Each message
takes a latency :math:`\alpha`, and its bytes divided by the bandwidth :math:`\beta` of
the worker's own link. Links carry messages in both directions at once:

.. math:: T = t + m \alpha + b / \beta.

The bytes b and messages m are those of the worker that sends most, as counted by
`djax.communication_cost`. An all-reduce is assumed to go around a ring, with
:math:`m = 2 (n - 1)` and :math:`b = 2 M (n - 1) / n`. A²CiD² averages once per gradient
while it computes: :math:`T = \max(t, m \alpha + b / \beta)`. The mechanism's own passes
over memory are left out. Efficiency is :math:`t / T`, the share of the time that is
spent on gradients; it does not say how much these gradients are worth.

The model is compared with the measurements of :mod:`benchmarks.slow_network`. There all
ranks share one link and two cores, so that some ranks compute while messages of others
pass. The predicted time of a step is therefore the larger of two times: the bytes of
all ranks over the bandwidth, and the time that the step took at the largest bandwidth,
less the time of its bytes there. The error is taken at the other bandwidths.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro

import djax
from djax import communicators, compressors, topologies
from experiments.lib import models

from . import contest, images


@dataclasses.dataclass(frozen=True)
class Config(contest.Published):
    """The options of the command line. `output` also has `slow_network.json`."""

    model: Literal["resnet18", "resnet50"] = "resnet50"
    """Network that is trained, on images of ImageNet's size."""
    gradient_ms: float | None = None
    """Milliseconds of a gradient; by default it is measured here."""
    batch_size: int = 32
    """Samples of a gradient that is measured."""
    latency_us: float = 5.0
    """Latency of a message in microseconds."""
    gigabits: tuple[float, ...] = (10.0, 100.0, 400.0)
    """Bandwidths of each worker's link, in Gbit/s."""
    workers: tuple[int, ...] = (8, 64, 512, 4096)
    """Numbers of workers."""


class Load(NamedTuple):
    """What one worker sends and keeps in a step.

    Attributes:
      bytes: number of bytes that it sends.
      messages: number of messages that it sends.
      memory: bytes of parameters, gradients, momentum and what the mechanism keeps.
      hidden: whether messages are sent while the worker computes.
    """

    bytes: float
    messages: float
    memory: float
    hidden: bool = False


Mechanism = Callable[[Any, Any], optax.GradientTransformation]
SIGN = compressors.sign()
FIELD: dict[str, tuple[str, Mechanism]] = {
    "gossip, ring": ("ring", djax.gossip),
    "gossip, torus": ("torus", djax.gossip),
    "gossip, exponential": ("exponential", djax.gossip),
    "relay, chain": ("chain", djax.relay),
    "relay, binary tree": ("binary_tree", djax.relay),
    "push_sum, one peer": ("one_peer_exponential", djax.push_sum),
    "choco_gossip sign, ring": (
        "ring",
        lambda graph, c: djax.choco_gossip(graph, c, SIGN, 0.1),
    ),
    "power_gossip rank 1, ring": ("ring", djax.power_gossip),
    "power_gossip rank 1, exponential": ("exponential", djax.power_gossip),
}


def loads(model: Any, n: int) -> dict[str, Load]:
    """The load of the busiest of n workers, for each mechanism."""
    communicator = communicators.simulated(n)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model))
    rounds = 2 * (n - 1)
    found = {"all_reduce": Load(size * rounds / n, rounds, 3 * size)}
    graphs = {name: getattr(topologies, name)(n) for name, _ in FIELD.values()}
    everyones = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), model
    )
    for name, (graph, make) in FIELD.items():
        mechanism = make(graphs[graph], communicator)
        cost = djax.communication_cost(mechanism, model, graphs[graph])
        state = jax.eval_shape(communicator.spmd(mechanism.init), everyones)
        kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / n
        found[name] = Load(cost.max_bytes, cost.max_messages, 3 * size + kept)
    messages = djax.communication_cost(
        djax.gossip(graphs["ring"], communicator), model, graphs["ring"]
    ).max_messages
    # A²CiD² sends to one neighbour per gradient, and keeps a second model.
    found["A²CiD², any graph"] = Load(size, messages / 2, 4 * size, hidden=True)
    return found


def step_seconds(load: Load, gradient: float, latency: float, bandwidth: float):
    """Predicts the seconds of a step.

    Args:
      load: load of the busiest worker.
      gradient: seconds of a gradient.
      latency: seconds of a message, besides those of its bytes.
      bandwidth: bytes per second.
    """
    sending = load.messages * latency + load.bytes / bandwidth
    return max(gradient, sending) if load.hidden else gradient + sending


def measure_gradient(config: Config) -> float:
    """Measures the seconds of a gradient on this machine, with random images."""
    network = getattr(models, config.model)(1000, stem="imagenet")
    params, model_state = images.start(network, 224)
    gradient = jax.jit(images.make_gradient(network))
    batch = images.batch((config.batch_size,), 224)
    run = {"gradient": lambda: gradient(params, model_state, batch)[0]}
    return float(np.median(contest.in_turns(run, 3)["gradient"]))


def errors(path: pathlib.Path) -> list[dict[str, Any]]:
    """Compares the model with the times that were measured on slow networks."""
    if not path.exists():
        raise SystemExit(
            f"{path} is missing: run benchmarks.slow_network with this --output, or "
            f"copy {contest.RESULTS / path.name}."
        )
    points = json.loads(path.read_text())["records"]
    fastest = max(point["megabits"] for point in points)

    def on_the_line(point):
        """Seconds that the bytes of a step take on the shared link."""
        ranks, passed = point["ranks"], 1.0
        if point["mechanism"] in ("all_reduce", "DiLoCo"):  # Around a ring.
            passed = 2 * (ranks - 1) / ranks
        return 8 * passed * point["bytes"] / (1e6 * point["megabits"])

    records = []
    for point in points:
        if point["megabits"] == fastest or not point["bytes"]:
            continue
        (best,) = (
            p
            for p in points
            if p["megabits"] == fastest and p["mechanism"] == point["mechanism"]
        )
        measured = float(np.median(point["alone"]))
        rest = max(float(np.median(best["alone"])) - on_the_line(best), 0.0)
        predicted = max(rest, on_the_line(point))
        records.append(
            {
                "mechanism": point["mechanism"],
                "megabits": point["megabits"],
                "measured": measured,
                "predicted": predicted,
                "error": predicted / measured - 1,
            }
        )
    return records


def predict(config: Config, gradient: float) -> list[dict[str, Any]]:
    """Predicts a record for each mechanism, bandwidth and number of workers."""
    network = getattr(models, config.model)(1000, stem="imagenet")
    model, _ = images.shapes(network, 224)
    latency, records = config.latency_us / 1e6, []
    for n in config.workers:
        for name, load in loads(model, n).items():
            for gigabits in config.gigabits:
                seconds = step_seconds(load, gradient, latency, gigabits * 1e9 / 8)
                records.append(
                    {
                        "mechanism": name,
                        "workers": n,
                        "gigabits": gigabits,
                        "gradient": gradient,
                        "step": seconds,
                        "efficiency": gradient / seconds,
                        "memory": load.memory,
                    }
                )
    return records


def table(config: Config, gigabits: float, records: list[dict[str, Any]]):
    """Title, columns and rows of the predictions for one bandwidth."""
    rows = []
    for name in dict.fromkeys(record["mechanism"] for record in records):
        mine = [r for r in records if r["mechanism"] == name]
        steps = [
            f"{1e3 * r['step']:.4g} ms, {r['efficiency']:.0%}"
            for r in mine
            if r["gigabits"] == gigabits
        ]
        rows.append([name, *steps, f"{max(r['memory'] for r in mine) / 1e6:.0f}"])
    gradient = 1e3 * records[0]["gradient"]
    title = f"{config.model}, gradients of {gradient:.4g} ms, {gigabits:g} Gbit/s"
    return (
        title,
        ["", *(f"{n} workers" for n in config.workers), "MB of memory a worker"],
        rows,
    )


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    held = errors(config.output / "slow_network.json")
    if config.gradient_ms is None:
        gradient = measure_gradient(config)
    else:
        gradient = config.gradient_ms / 1e3
    records = predict(config, gradient)
    tables = [table(config, gigabits, records) for gigabits in config.gigabits]
    rows = [
        [
            f"{r['mechanism']}, {r['megabits']} Mbit/s",
            f"{1e3 * r['measured']:.4g}",
            f"{1e3 * r['predicted']:.4g}",
            f"{r['error']:+.1%}",
        ]
        for r in held
    ]
    columns = ["", "measured, ms", "predicted, ms", "error"]
    tables.append(("the model on slow_network's points", columns, rows))
    contest.publish("scale_model", tables, records + held, config.output)


if __name__ == "__main__":
    main()
