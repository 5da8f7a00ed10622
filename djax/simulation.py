"""Loops over many training steps of all local workers, at two speeds.

Models made of matrix products train fastest as one program: the gradients of all
workers under one `vmap`, the steps under one `lax.scan`. Convolutions do not: with
weights of its own for each worker a convolution becomes a grouped one, and inside a
loop XLA's CPU backend takes a slow path; on two cores eight small ResNets took 5 times
as long as one after another. For those, `dispatch=True` computes the gradients worker
by worker, each as a program of its own, and vmaps the optimizer alone. The numbers are
the same.

Under MPI and on a mesh the same functions run each process's or device's one worker,
so that a script written for the simulator is launched by `mpirun` unchanged.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._base import Communicator, PyTree
from .communicators import MeshCommunicator, SimulatedCommunicator, replicate
from .communicators._common import check_leading_axis

GradientFn = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
StepsFn = Callable[["Workers", PyTree], tuple["Workers", PyTree]]


class Workers(NamedTuple):
    """All local workers of a run; every leaf has a leading axis of local workers.

    Attributes:
      params: their models.
      opt_state: states of the optimizer.
      model_state: what the gradient carries along and nobody averages, such as the
        statistics of batch normalization; `()` if nothing.
    """

    params: PyTree
    opt_state: optax.OptState
    model_state: PyTree = ()


def init_workers(
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    params: PyTree,
    model_state: PyTree = (),
) -> Workers:
    """Starts the local workers.

    Args:
      optimizer: what every worker runs.
      communicator: where the workers live.
      params: their models, with a leading axis of local workers
        (:func:`djax.communicators.replicate`).
      model_state: their other state, likewise.

    Returns:
      The workers; their arrays are copies, which :func:`make_steps` may donate.
    """
    opt_state = jax.jit(communicator.spmd(optimizer.init))(params)
    params, model_state = jax.tree.map(jnp.copy, (params, model_state))
    return Workers(params, opt_state, model_state)


def make_steps(
    gradient_fn: GradientFn,
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    *,
    dispatch: bool = False,
) -> StepsFn:
    """Makes a function that trains all local workers for several steps.

    Args:
      gradient_fn: what ONE worker computes,
        `(params, model_state, batch) -> (grads, model_state, metrics)`.
      optimizer: the chain with the mechanism.
      communicator: where the workers live.
      dispatch: compute the gradients worker by worker, for models with convolutions,
        instead of in one program with everything else.

    Returns:
      `(workers, batches) -> (workers, metrics)`, where the leaves of `batches` and
      `metrics` have two leading axes, local workers and steps. It donates `workers`,
      returns before the computation ends, and raises ValueError if the leading axes
      do not fit.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> communicator = djax.communicators.simulated(2)
      >>> optimizer = djax.all_reduce_sgd(0.5, communicator)
      >>> def gradient_fn(x, model_state, target):
      ...     return x - target, model_state, {"loss": 0.5 * (x - target) ** 2}
      >>> x = djax.communicators.replicate(communicator, 0.0)
      >>> workers = djax.simulation.init_workers(optimizer, communicator, x)
      >>> steps = djax.simulation.make_steps(gradient_fn, optimizer, communicator)
      >>> targets = jnp.asarray([[1.0] * 9, [3.0] * 9])  # [workers, steps]
      >>> workers, metrics = steps(workers, targets)
      >>> print(workers.params.round(2), metrics["loss"].shape)
      [2. 2.] (2, 9)
    """
    if not dispatch:
        make = _scanned
    elif isinstance(communicator, SimulatedCommunicator):
        make = _dispatched
    else:
        make = _stepwise
    program = make(gradient_fn, optimizer, communicator)

    def steps(workers: Workers, batches: PyTree) -> tuple[Workers, PyTree]:
        _check_axes(workers, batches, communicator)
        return program(workers, jax.tree.map(jnp.asarray, batches))

    return steps


def _step(gradient_fn, optimizer, workers, batch):
    """One step of one worker."""
    grads, model_state, metrics = gradient_fn(
        workers.params, workers.model_state, batch
    )
    return _apply(optimizer, workers, grads, model_state), metrics


def _apply(optimizer, workers, grads, model_state):
    updates, opt_state = optimizer.update(grads, workers.opt_state, workers.params)
    params = optax.apply_updates(workers.params, updates)
    return Workers(params, opt_state, model_state)


def _scanned(gradient_fn, optimizer, communicator) -> StepsFn:
    """All steps of all workers in one program."""

    def worker(state, batches):
        return jax.lax.scan(
            lambda state, batch: _step(gradient_fn, optimizer, state, batch),
            state,
            batches,
        )

    return jax.jit(communicator.spmd(worker), donate_argnums=0)


def _stepwise(gradient_fn, optimizer, communicator) -> StepsFn:
    """A program a step, for devices that each have one worker."""

    def worker(state, batches, t):
        batch = jax.tree.map(lambda x: x[t], batches)
        return _step(gradient_fn, optimizer, state, batch)

    program = jax.jit(communicator.spmd(worker), donate_argnums=0)

    def steps(workers, batches):
        history = []
        for t in range(_count_steps(batches)):
            now = replicate(communicator, t)
            workers, metrics = program(workers, batches, now)
            history.append(metrics)
        return workers, _stack(history)

    return steps


def _dispatched(gradient_fn, optimizer, communicator) -> StepsFn:
    """A program for each worker's gradient, and one for the update of all."""

    @jax.jit
    def gradient(workers, batches, i, t):
        batch = jax.tree.map(lambda x: x[i, t], batches)
        params, model_state = jax.tree.map(
            lambda x: x[i], (workers.params, workers.model_state)
        )
        return gradient_fn(params, model_state, batch)

    def update(workers, results):
        grads, model_state, metrics = jax.tree.map(lambda *xs: jnp.stack(xs), *results)
        apply = communicator.spmd(lambda *args: _apply(optimizer, *args))
        return apply(workers, grads, model_state), metrics

    update = jax.jit(update, donate_argnums=0)

    def steps(workers, batches):
        history = []
        for t in range(_count_steps(batches)):
            results = [
                gradient(workers, batches, i, t) for i in range(communicator.size)
            ]
            workers, metrics = update(workers, results)
            history.append(metrics)
        return workers, _stack(history)

    return steps


def _check_axes(workers: Workers, batches: PyTree, communicator: Communicator) -> None:
    """Raises ValueError unless the batches are `[local workers, steps, ...]`."""
    whole = isinstance(communicator, MeshCommunicator)  # Its arrays are global.
    size, local = communicator.size, len(communicator.local_ranks)
    check_leading_axis("steps", (workers, batches), size if whole else local)
    counts = {np.shape(x)[1] if np.ndim(x) > 1 else 0 for x in jax.tree.leaves(batches)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "the leaves of batches need two leading axes, local workers and steps, the "
            f"same for all; got {sorted(counts)} steps."
        )


def _count_steps(batches: PyTree) -> int:
    return jax.tree.leaves(batches)[0].shape[1]


def _stack(history: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *history)
