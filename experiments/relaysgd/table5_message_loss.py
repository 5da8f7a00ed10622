r"""Table 5, on handwritten digits: which methods tolerate lost messages.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.table5_message_loss           # 3 seeds
    python -m experiments.relaysgd.table5_message_loss --smoke   # seconds

The protocol is the paper's: 16 workers, classes split by a Dirichlet distribution with
alpha 0.01, Nesterov momentum 0.9, weight decay 1e-4, warm-up over a fortieth of the
training, and decays after 75 and 90 % of it. 0, 1 and 10 % of the messages are lost.
Each worker's accuracy is averaged over the last two evaluations, and the score is that
of the worst worker. The task is scaled down: digits of 8 x 8 pixels and a small MLP
replace CIFAR-10 and VGG-11, and 40 epochs replace 200. Each method keeps the learning
rate that is best for it when no message is lost. All learning rates and seeds of a
method are computed in one program. The run takes 4 minutes on 2 cores.

Expect D² to diverge, and the other methods to lose a point at most. If messages are
lost, gossip divides by the total weight of the messages that arrived. The paper's code
does so only since a correction after the submission. Quasi-global momentum, which
diverges in the paper, does not diverge here; D² does.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import communicators, topologies

from ..lib import figures, tasks
from ..lib.optimizers import BaseOptimizer, learning_rate_schedule
from .methods import COLORS

SPLIT, BATCH_SIZE = "dirichlet:0.01", 16
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
NESTEROV: dict[str, Any] = {"momentum": 0.9, "nesterov": True}

PAPER = {
    "RelaySGD": {0.0: "89.2", 0.01: "89.3", 0.1: "89.3"},
    "D-PSGD + QGM": {0.0: "69.3", 0.01: "diverges", 0.1: "diverges"},
    "D²": {0.0: "87.4", 0.01: "diverges", 0.1: "diverges"},
    "SGP": {0.0: "88.5", 0.01: "88.6", 0.1: "88.1"},
}
"""The paper's test accuracies on CIFAR-10, by the share of lost messages."""


def make_optimizer(method: str, rate: optax.Schedule, communicator: djax.Communicator):
    """Makes the optimizer of a method by its name in the table."""
    n = communicator.size
    gossip = djax.gossip(topologies.ring(n), communicator)
    if method == "RelaySGD":
        trees = topologies.double_binary_trees(n)
        own = djax.relay_sgd(rate, trees, communicator, missing="latest", **NESTEROV)
    elif method == "D-PSGD + QGM":
        own = djax.quasi_global_momentum(rate, gossip)
    elif method == "D²":
        # If messages are lost, D² converges to a wrong point, so djax.d2 refuses such
        # communicators. To show what would happen, gossip does not tell which it has.
        silent = djax.Mechanism(gossip.init, gossip.update)
        own = optax.chain(optax.sgd(rate, **NESTEROV), djax.d2(silent))
    else:
        schedule = topologies.one_peer_exponential(n)
        own = djax.sgp(rate, schedule, communicator, rounds=2, **NESTEROV)
    return optax.chain(optax.add_decayed_weights(1e-4), own)


def train(
    method: str,
    loss: float,
    rates: Sequence[float],
    seeds: int,
    epochs: int,
    workers: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains with all peak learning rates and seeds in one program.

    A message is lost with the probability `loss`. There are at least two epochs.

    Returns:
      The accuracy of each worker, averaged over the last two epochs,
      `[rates, seeds, workers]`, and the training loss, averaged over the workers,
      `[rates, seeds, epochs]`.
    """
    communicator = communicators.simulated(workers, drop_probability=loss)
    everyone = [
        tasks.digits(tasks.Setting(workers, range(workers), SPLIT, BATCH_SIZE, seed))
        for seed in range(seeds)
    ]
    task = everyone[0]
    starts = _stack([t.init(jax.random.key(seed)) for seed, t in enumerate(everyone)])
    data = _stack([_stack(map(t.epoch, range(epochs)), axis=1) for t in everyone])
    base = BaseOptimizer(learning_rate=1.0, warmup=1 / 40, decay_at=(0.75, 0.9))
    shape = learning_rate_schedule(base, task.steps_per_epoch * epochs)

    def run(rate, start, data):
        optimizer = make_optimizer(method, lambda t: rate * shape(t), communicator)

        def step(carry, batch):
            params, state = carry
            grads, _, measured = task.gradient_fn(params, (), batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), measured["loss"]

        def epoch(carry, batches):
            number, batches = batches
            carry, losses = jax.lax.scan(step, carry, batches)
            accuracy = jax.lax.cond(
                number >= epochs - 2,
                lambda params: task.assess(params)["accuracy"],
                lambda params: jnp.zeros(()),
                carry[0],
            )
            return carry, (accuracy, losses.mean())

        @communicator.spmd
        def worker(params, data):
            carry, numbers = (params, optimizer.init(params)), jnp.arange(epochs)
            _, (accuracy, losses) = jax.lax.scan(epoch, carry, (numbers, data))
            return accuracy[-2:].mean(), losses

        accuracy, losses = worker(communicators.replicate(communicator, start), data)
        return accuracy, losses.mean(0)

    program = jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None)))
    accuracy, losses = program(jnp.asarray(rates, jnp.float32), starts, data)
    return np.asarray(accuracy), np.asarray(losses)


def _stack(trees: Iterable[Any], axis: int = 0) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def compute(
    losses: Sequence[float], rates: Sequence[float], *size: int
) -> Iterator[figures.Record]:
    """Trains every method with every share of lost messages.

    All `rates` are tried with the first of `losses`, and the best one is used with the
    others. The further arguments are the last ones of :func:`train`.
    """
    for method in tqdm(PAPER, desc="table 5", unit="method"):
        tried = list(rates)
        for loss in losses:
            accuracy, curves = train(method, loss, tried, *size)
            worst = accuracy.min(-1)  # [rates, seeds]
            means = worst.mean(1).tolist()
            chosen = int(np.argmax(means))
            yield {
                "method": method,
                "loss": loss,
                "learning_rate": tried[chosen],
                "worst": worst[chosen].tolist(),
                "mean": accuracy[chosen].mean(-1).tolist(),
                "training_loss": curves[chosen].mean(0).tolist(),
                "rates_tried": dict(zip(tried, means, strict=True)),
            }
            tried = [tried[chosen]]


def make_tables(records: list[figures.Record]):
    """Shows the accuracy of the worst worker beside the paper's."""
    rows = []
    for method, paper in PAPER.items():
        mine = figures.select(records, method=method)
        row: list[Any] = [method, mine[0]["learning_rate"]]
        for record in mine:
            worst = 100 * np.array(record["worst"])
            row += [f"{worst.mean():.1f} ± {worst.std():.1f}", paper[record["loss"]]]
        rows.append(row)
    columns = ["method", "learning rate"]
    for loss in figures.distinct(records, "loss"):
        columns += [f"{100 * loss:g} % lost: digits", "paper"]
    title = (
        "Table 5: test accuracy of the worst worker, mean and deviation over the seeds"
    )
    caption = "paper: CIFAR-10 and VGG-11, one seed."
    return [figures.table(title, columns, rows, caption)]


def draw(records: list[figures.Record]):
    """Draws training loss by epoch, in a panel for each share of lost messages."""
    losses = figures.distinct(records, "loss")
    size = 3 * len(losses), 3
    figure, (panels,) = figures.panels(size, columns=len(losses), sharey=True)
    for axes, loss in zip(panels, losses, strict=True):
        for record in figures.select(records, loss=loss):
            values, method = record["training_loss"], record["method"]
            color = COLORS[method.removesuffix(" + QGM")]
            axes.plot(range(1, 1 + len(values)), values, color=color, label=method)
        axes.set(yscale="log", xlabel="epoch", title=f"{100 * loss:g} % lost")
    panels[0].set_ylabel("training loss, mean of workers")
    panels[-1].legend(fontsize=8)
    return figure


main = figures.script(
    __name__, full=([0.0, 0.01, 0.1], RATES, 3, 40), smoke=([0.1], [0.1], 1, 2, 4)
)

if __name__ == "__main__":
    main()
