"""Compiles many training steps of all local workers, in one of three ways.

Models made of matrix products train fastest as one program (:func:`scanned`), with the
gradients of all workers under one `vmap` and the steps under one `lax.scan`.

For models with convolutions a program for each worker's gradient is faster
(:func:`dispatched`, or :func:`stepwise` if workers have devices of their own). The
reason is that `vmap` turns a convolution with different weights for each worker into a
grouped convolution, and that XLA's CPU backend is slow for convolutions inside a loop.
On two cores, eight small ResNets took 5 times as long in one program as one after
another.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arrays.finite import all_finite
from djax._interfaces import Communicator, PyTree
from djax._mechanism.apply import apply_gradients
from djax._mechanism.order import observing
from djax.communicators import replicate

from ._gradient_fn import GradientFn, check_gradients, check_unchanged
from ._layout import compiled
from ._nonfinite import NonFinite, flaw, without_step

StepsFn = Callable[["Workers", PyTree], tuple["Workers", PyTree]]


class Workers(NamedTuple):
    """All local workers of a run; every leaf has a leading axis of local workers.

    Attributes:
      params: the models.
      opt_state: the states of the optimizer.
      model_state: values that the gradient function passes on from step to step and no
        mechanism averages, such as the statistics of batch normalization; `()` if there
        are none.
    """

    params: PyTree
    opt_state: optax.OptState
    model_state: PyTree = ()


@dataclasses.dataclass(frozen=True)
class OneWorker:
    """What one worker does in a step.

    Attributes:
      gradient_fn: computes the worker's gradient.
      optimizer: the optimizer, a chain that contains the mechanism.
      nonfinite: what happens to a gradient that is not finite; see
        :func:`djax.training.make_steps`.
      suspicions: one entry each time a step is traced: whether the optimizer changes
        values that a mechanism has averaged, which may be a mistake.
    """

    gradient_fn: GradientFn
    optimizer: optax.GradientTransformation
    nonfinite: NonFinite
    suspicions: list[bool] = dataclasses.field(default_factory=list)

    def gradient(self, params: PyTree, model_state: PyTree, batch: PyTree) -> Any:
        """Calls the gradient function, and checks its result while it is traced."""
        made = self.gradient_fn(params, model_state, batch)
        check_gradients("make_steps", made, params, model_state)
        return made

    def apply(self, workers: Workers, made: Any) -> tuple[Workers, tuple[PyTree, Any]]:
        """Returns the worker after a step, and the metrics and flaws of the step.

        Args:
          workers: this worker before the step, without an axis of workers.
          made: the result of the gradient function.
        """
        grads, model_state, metrics = made
        if self.nonfinite == "skip":
            grads, model_state = without_step(
                all_finite(grads), grads, model_state, workers.model_state
            )
        with observing() as observer:
            params, opt_state = apply_gradients(
                self.optimizer, grads, workers.opt_state, workers.params
            )
        self.suspicions.append(observer.suspicious)
        flaws = flaw(grads, params) if self.nonfinite == "raise" else ()
        return Workers(params, opt_state, model_state), (metrics, flaws)

    def step(self, workers: Workers, batch: PyTree) -> tuple[Workers, Any]:
        """Computes a gradient and applies it."""
        made = self.gradient(workers.params, workers.model_state, batch)
        return self.apply(workers, made)


def scanned(worker: OneWorker, communicator: Communicator) -> StepsFn:
    """Makes one program for all steps of all workers."""

    def step(before, batch):
        after, measured = worker.step(before, batch)
        check_unchanged("make_steps", before, after)
        return after, measured

    def all_steps(state, batches):
        return jax.lax.scan(step, state, batches)

    return compiled(communicator, all_steps)


def stepwise(worker: OneWorker, communicator: Communicator) -> StepsFn:
    """Makes a program for one step, for workers that have devices of their own."""

    def one_step(state, batches, t):
        return worker.step(state, jax.tree.map(lambda x: x[t], batches))

    program = compiled(communicator, one_step)
    return _loop(lambda w, b, t: program(w, b, replicate(communicator, t)))


def dispatched(worker: OneWorker, communicator: Communicator) -> StepsFn:
    """Makes a program for one worker's gradient, and one for the updates of all."""

    @jax.jit
    def gradient(workers, batches, i, t):
        batch = jax.tree.map(lambda x: x[i, t], batches)
        params, model_state = jax.tree.map(
            lambda x: x[i], (workers.params, workers.model_state)
        )
        return worker.gradient(params, model_state, batch)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(workers, results):
        made = jax.tree.map(lambda *xs: jnp.stack(xs), *results)
        return communicator.spmd(worker.apply)(workers, made)

    def one_step(workers, batches, t):
        ranks = range(communicator.size)
        return update(workers, [gradient(workers, batches, i, t) for i in ranks])

    return _loop(one_step)


def _loop(one_step: Callable[..., tuple[Workers, Any]]) -> StepsFn:
    """Makes a loop in Python that calls `one_step(workers, batches, t)` each step."""

    def steps(workers, batches):
        history = []
        for t in range(jax.tree.leaves(batches)[0].shape[1]):
            workers, measured = one_step(workers, batches, t)
            history.append(measured)
        return workers, jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *history)

    return steps
