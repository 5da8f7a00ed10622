"""Evaluates each worker's model, and the mean of all models."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import djax
from djax import metrics
from djax.communicators import from_local, to_local

from .tasks import Task

STATISTICS_STEPS = 10
"""An averaged model gets its statistics from the batches of this many steps."""


def make_assess(
    task: Task, communicator: djax.Communicator
) -> Callable[..., dict[str, Any]]:
    """Makes a function that evaluates the local workers and the averaged model.

    The function is `(params, model_state=None) -> record`. The record has the `scores`
    of the workers, their `mean` and `worst`, the score of the `averaged` model,
    `mean_loss`, `averaged_loss` and `consensus_distance`.

    If models have batch normalizations, the averaged model gets their statistics from
    training data, the batches of all workers' first steps. The statistics are the mean
    over these batches or, if the task's statistics are pooled, those of all the batches
    together. Without a model state, each worker's model gets statistics from the
    worker's own data.
    """
    local = communicator.local_ranks
    alone = len(local) < communicator.size  # Other processes have the other workers.
    # On a mesh of several processes, each process evaluates copies of its own models.
    copies = alone and communicator.sharding is not None
    dispatch = copies or (task.dispatch and len(local) > 1)
    evaluate_one, evaluate_own = _make_evaluate(task.evaluate, dispatch, communicator)
    measure, mean_of_all = _make_means(communicator)

    def mean(tree):
        if not copies:
            return mean_of_all(tree)
        return to_local(communicator, mean_of_all(from_local(communicator, tree)))

    def assess(params, model_state=None):
        averaged, distance = measure(params)
        if copies:
            found = params, averaged, distance, model_state
            params, averaged, distance, model_state = to_local(communicator, found)
        first = _take(averaged, 0)
        state, own_state = task.model_state, model_state
        if task.statistics is not None:
            state = _find_statistics(task, averaged, mean)
            if model_state is None:
                own_state = _find_statistics(task, params)
        elif model_state is None:
            own_state = jax.tree.map(jnp.asarray, task.model_state)
        state = _take(state, 0)
        own, shared = [], []
        for i, batch in enumerate(task.held_out()):
            own.append(evaluate_own(params, own_state, batch))
            if not alone or i % communicator.size in local:
                shared.append(evaluate_one(first, state, batch))
        sums, part = _total(own), _total(shared)
        everyone = communicator.gather(
            [
                ({key: float(x[i]) for key, x in sums.items()}, {} if i else part)
                for i in range(len(local))
            ]
        )
        parts = [part for _, part in (everyone if alone else everyone[:1]) if part]
        whole = {key: float(sum(part[key] for part in parts)) for key in sums}
        workers = [task.average(own) for own, _ in everyone]
        averaged = task.average(whole)
        scores = [float(worker[task.score]) for worker in workers]
        return {
            "mean": statistics.fmean(scores),
            "worst": min(scores) if task.higher_is_better else max(scores),
            "averaged": float(averaged[task.score]),
            "mean_loss": statistics.fmean(float(worker["loss"]) for worker in workers),
            "averaged_loss": float(averaged["loss"]),
            "scores": scores,
            "consensus_distance": float(np.asarray(distance)[0]),
        }

    return assess


def assess_one(task: Task, params: Any) -> dict[str, float]:
    """Evaluates one model in this process, without any communication.

    The statistics of batch normalizations are those of the process's own data.
    """
    state = task.model_state
    if task.statistics is not None:
        state = _find_statistics(task, jax.tree.map(lambda x: x[None], params))
    state, program = _take(state, 0), jax.jit(task.evaluate)
    results = [program(params, state, batch) for batch in task.held_out()]
    means = task.average(_total(results))
    return {key: float(value) for key, value in means.items()}


@jax.jit
def _take(tree: Any, *index: int) -> Any:
    """Indexes all leaves in one program, faster than by one call for each leaf."""
    return jax.tree.map(lambda x: x[index], tree)


@functools.lru_cache(maxsize=1)
def _make_means(communicator: djax.Communicator) -> tuple[Callable, Callable]:
    """Makes a function that returns the averaged model and the consensus distance, and
    one that averages over workers. They are kept, so that later runs need not compile.
    """

    @jax.jit
    @communicator.spmd
    def measure(params):
        averaged = metrics.mean_params(params, communicator)
        return averaged, metrics.consensus_distance(params, communicator)

    return measure, jax.jit(communicator.spmd(communicator.mean))


@functools.lru_cache(maxsize=1)
def _make_evaluate(evaluate_fn, dispatch, communicator) -> tuple[Callable, Callable]:
    """Makes functions that evaluate one model, or the models of all local workers, on
    one batch. They are kept as those of `_make_means` are.
    """
    evaluate_one = jax.jit(evaluate_fn)

    def together(params, model_state, batch):
        worker = communicator.spmd(lambda p, s: evaluate_fn(p, s, batch))
        return worker(params, model_state)

    def one_by_one(params, model_state, batch):
        results = [
            evaluate_one(*_take((params, model_state), i), batch)
            for i in range(len(jax.tree.leaves(params)[0]))
        ]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *results)

    return evaluate_one, one_by_one if dispatch else jax.jit(together)


def _find_statistics(
    task: Task, params: Any, mean: Callable[[Any], Any] = lambda moments: moments
) -> Any:
    """Returns the statistics of each local worker's model on the worker's own data.

    The statistics are means over batches and, if `mean` takes them, over workers. If
    the task's statistics are pooled, second moments take the place of variances: unlike
    variances, moments of several batches or workers can be averaged.
    """
    assert task.statistics is not None
    program = jax.jit(task.statistics)
    steps = min(STATISTICS_STEPS, task.steps_per_epoch)
    batches = task.batches(0, steps)
    found = []
    for i in range(len(jax.tree.leaves(params)[0])):
        model = _take(params, i)
        own = [program(model, _take(batches, i, t)) for t in range(steps)]
        if task.pooled_statistics:
            own = [_add_squared_means(statistics, 1) for statistics in own]
        found.append(jax.tree.map(lambda *xs: sum(xs) / steps, *own))
    moments = mean(jax.tree.map(lambda *xs: jnp.stack(xs), *found))
    return _add_squared_means(moments, -1) if task.pooled_statistics else moments


def _add_squared_means(tree: Any, sign: int) -> Any:
    """Adds `sign` times the squared `mean` to each `var` beside it."""
    if not isinstance(tree, Mapping):
        return tree
    if tree.keys() == {"mean", "var"}:
        moved = tree["var"] + sign * jnp.square(tree["mean"])
        return {"mean": tree["mean"], "var": jnp.maximum(moved, 0)}
    return {key: _add_squared_means(value, sign) for key, value in tree.items()}


def _total(results: Sequence[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """Returns sums over batches, in float64."""

    def total(*values):
        return np.sum([np.asarray(value, np.float64) for value in values], axis=0)

    return jax.tree.map(total, *results) if results else {}
