"""Gossip on graphs with many edges, and how long large graphs take to build.

    python -m benchmarks.dense_graphs

1. A step of D-PSGD in simulation (SGD with given gradients, then gossip), on the graphs
   of all builders with 16 to 1,024 workers, which together have a million parameters.
   Contestants: `gossip`; *product*, which is `y + (W - I) @ y` with the models y after
   SGD; *rounds*, which are gossip's messages one after the other; and `all_reduce`.
   Rounds are left out where there are more than 64 of them, and compile for minutes.
   Aim: gossip takes at most 1.2 times as long as the faster one of product and rounds.
   On complete graphs, whose weights are all equal, it takes at most 1.2 times as long
   as `all_reduce`, both without SGD: behind SGD, all-reduce reads two arrays less,
   since it does not need the updates once it has the mean.
2. Time and memory to build a ring of 16,384 workers, with its rounds; and the time to
   build a random 4-regular graph of 4,096 workers, its weights and its rounds, against
   networkx, which draws the graph, and NumPy, which computes its Metropolis weights.
   Aims: a second, 200 MB, and 1.5 times.
"""

import dataclasses
import functools
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import tyro

import djax
from djax import communicators, mixing, topologies

from . import contest

ENTRIES = 2**20  # Parameters of all workers together.
MOST_ROUNDS = 64
GOSSIP, RING_SECONDS, RING_MB, REGULAR = 1.2, 1.0, 200.0, 1.5
RING, REGULAR_SIZE = 16_384, 4_096
ZERO = optax.set_to_zero()


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    repeats: int = 3
    """How often each contestant runs, after a first run that compiles."""
    sizes: tuple[int, ...] = (16, 64, 256, 1024)
    """Numbers of workers of the first table."""
    graphs: tuple[str, ...] = ()
    """Graphs of the first table; all by default."""
    steps: int = 5
    """Steps of a run of the first table."""


def builders(n: int) -> dict[str, Callable[[], topologies.Graph]]:
    """Functions that build the graphs of n workers, by name."""
    made: dict[str, Any] = {
        name: functools.partial(getattr(topologies, name), n)
        for name in (*topologies.BUILDERS, *topologies.SCHEDULES)
        if name != "social_network"  # It has 32 workers.
    }
    degree = max(8, n // 8)
    for directed in (False, True):
        made[f"equi_static, {'' if directed else 'un'}directed"] = functools.partial(
            topologies.equi_static, n, degree=degree, directed=directed
        )
    if n <= 64:  # The probabilities are found by a dense semidefinite program.
        complete = topologies.complete(n)
        made["matcha, complete"] = functools.partial(
            topologies.matcha, complete, 0.5, period=20
        )
    return made


def by_rounds(
    graph: topologies.Graph, communicator: Any
) -> optax.GradientTransformation:
    """Gossip that makes its rounds one after the other."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        model = optax.apply_updates(params, updates)
        for heard in mixing.exchange(model, graph, communicator, step=state):
            apart = mixing.finite_difference(heard.message, heard.own)
            updates = updates + heard.weight * apart
        return updates, state + 1

    return optax.GradientTransformation(init, update)


def by_product(graph: topologies.Graph) -> Callable[[jax.Array, jax.Array], Any]:
    """Gossip of all workers as a product with the dense matrix of a step."""
    rests = jnp.asarray(graph.matrices - np.eye(graph.size), jnp.float32)

    def move(y, step):
        return jnp.matmul(rests[step % graph.period], y, precision="highest")

    return move


def programs(config: Config, graph: topologies.Graph) -> dict[str, Any]:
    """The contestants, each as a jitted function of models and gradients."""
    n, steps = graph.size, config.steps
    workers = communicators.simulated(n)

    def chained(mechanism, rate=0.1):
        optimizer = optax.chain(optax.sgd(rate) if rate else ZERO, mechanism)

        def worker(x, gradient):
            def step(carry, _):
                x, state = carry
                updates, state = optimizer.update(gradient, state, x)
                return (optax.apply_updates(x, updates), state), None

            return jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[0][0]

        return jax.jit(workers.spmd(worker))

    move = by_product(graph)

    @jax.jit
    def product(x, gradients):
        def step(x, t):
            y = x - 0.1 * gradients
            return y + move(y, t), None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    contestants = {
        "gossip": chained(djax.gossip(graph, workers)),
        "product": product,
        "all_reduce": chained(djax.all_reduce(workers)),
    }
    if graph.name == "complete":
        contestants["gossip alone"] = chained(djax.gossip(graph, workers), rate=0)
        contestants["all_reduce alone"] = chained(djax.all_reduce(workers), rate=0)
    if max(len(graph.rounds_at(t)) for t in range(graph.period)) <= MOST_ROUNDS:
        contestants["rounds"] = chained(by_rounds(graph, workers))
    return contestants


def measure(config: Config, name: str, graph: topologies.Graph) -> dict[str, Any]:
    """Times the contestants on one graph, and returns the record."""
    n = graph.size
    print(f"{name}, {n} workers", file=sys.stderr, flush=True)
    draw = np.random.default_rng(0)
    x, gradients = (
        jnp.asarray(draw.normal(size=(n, ENTRIES // n)), jnp.float32) for _ in range(2)
    )
    contestants = programs(config, graph)
    compiled: dict[str, Any] = {}
    record: dict[str, Any] = {"graph": name, "workers": n}
    for contestant, program in contestants.items():
        start = time.perf_counter()
        compiled[contestant] = program.lower(x, gradients).compile()
        record[f"{contestant}, s to compile"] = time.perf_counter() - start
    expected = compiled["product"](x, gradients)
    np.testing.assert_allclose(compiled["gossip"](x, gradients), expected, atol=1e-3)
    seconds = contest.in_turns(
        {k: lambda run=run: run(x, gradients) for k, run in compiled.items()},
        config.repeats,
    )
    record |= {k: (times / config.steps).tolist() for k, times in seconds.items()}
    others = [seconds[k] for k in ("product", "rounds") if k in seconds]
    ratio = seconds["gossip"] / np.min(others, axis=0)
    if name == "complete":
        ratio = seconds["gossip alone"] / seconds["all_reduce alone"]
    record["ratio"] = ratio.tolist()
    record["rounds a step"] = max(len(graph.rounds_at(t)) for t in range(graph.period))
    return record


def build_large(config: Config) -> list[dict[str, Any]]:
    """Times the construction of large graphs, and measures a ring's memory."""

    def ring():
        topologies.ring(RING).rounds  # noqa: B018

    def draw():
        return nx.random_regular_graph(4, REGULAR_SIZE, seed=0)

    def regular():
        topologies.from_networkx(draw()).rounds  # noqa: B018

    def plain():
        adjacency = nx.to_numpy_array(draw())
        degree = adjacency.sum(axis=1)
        weights = adjacency / (1 + np.maximum(degree[:, np.newaxis], degree))
        np.fill_diagonal(weights, 1 - weights.sum(axis=1))

    contestants = {"ring": ring, "regular": regular, "plain": plain}
    seconds = contest.in_turns(contestants, config.repeats)
    tracemalloc.start()
    ring()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return [
        {"graph": f"ring of {RING}, s", "values": seconds["ring"].tolist()},
        {"graph": f"ring of {RING}, MB", "values": [peak]},
        {
            "graph": f"4-regular of {REGULAR_SIZE}, against networkx and NumPy",
            "values": (seconds["regular"] / seconds["plain"]).tolist(),
        },
    ]


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    records = []
    for n in config.sizes:
        for name, build in builders(n).items():
            if not config.graphs or name in config.graphs:
                records.append(measure(config, name, build()))
    large = build_large(config)
    columns = ["graph", "workers", "rounds a step", *CONTESTANTS]
    columns += ["compile, s", "ratio", "aim"]
    rows = [
        [
            *(record[k] for k in ("graph", "workers", "rounds a step")),
            *(milliseconds(record.get(k)) for k in CONTESTANTS),
            f"{record['gossip, s to compile']:.2f}",
            contest.spread(record["ratio"]),
            contest.verdict(np.median(record["ratio"]), GOSSIP),
        ]
        for record in records
    ]
    aims = RING_SECONDS, RING_MB, REGULAR
    built = [
        [
            record["graph"],
            contest.spread(record["values"]),
            contest.verdict(np.median(record["values"]), aim),
        ]
        for record, aim in zip(large, aims, strict=True)
    ]
    tables = [
        ("A step of D-PSGD, ms", columns, rows),
        ("Construction", ["", "measured", "aim"], built),
    ]
    contest.publish("dense_graphs", tables, records + large, config.output)


CONTESTANTS = "gossip", "product", "rounds", "all_reduce"


def milliseconds(seconds: Any) -> str:
    """The median in milliseconds, or a dash where nothing was measured."""
    return "–" if seconds is None else f"{1e3 * np.median(seconds):.2f}"


if __name__ == "__main__":
    main()
