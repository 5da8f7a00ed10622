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

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arguments import (
    check_choice,
    check_communicator,
    check_flags,
)
from djax._arrays.checks import check_arrays
from djax._checking.check import check as check_optimizer
from djax._checking.codes import problems_of_codes
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax._mechanism.order import observing
from djax._mechanism.refusals import refuse
from djax._mechanism.value import parts_within
from djax._transformations import as_transformation
from djax.communicators import replicate
from djax.communicators._common import check_leading_axis

from ._gradient_fn import (
    GradientFn,
    check_gradients,
    check_signature,
    check_unchanged,
)
from ._nonfinite import (
    NonFinite,
    all_finite,
    flaw,
    make_check,
    without_step,
)

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

    Raises:
      TypeError: if the optimizer is none, as an asynchronous algorithm is, if the
        communicator is none, or if a leaf is no array, as in modules.
      ValueError: if a leaf has no leading axis of local workers.
    """
    optimizer = as_transformation("init_workers", optimizer)
    check_communicator("init_workers", communicator)
    check_arrays("init_workers", params, modules=False)
    check_arrays("init_workers", model_state)
    opt_state = jax.jit(communicator.spmd(optimizer.init))(params)
    params, model_state = jax.tree.map(jnp.copy, (params, model_state))
    return Workers(params, opt_state, model_state)


def make_steps(
    gradient_fn: GradientFn,
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    *,
    dispatch: bool = False,
    nonfinite: NonFinite = "raise",
) -> StepsFn:
    """Makes a function that trains all local workers for several steps.

    Args:
      gradient_fn: what ONE worker computes,
        `(params, model_state, batch) -> (grads, model_state, metrics)`.
      optimizer: the chain with the mechanism.
      communicator: where the workers live.
      dispatch: compute the gradients worker by worker, for models with convolutions,
        instead of in one program with everything else.
      nonfinite: what to do about a gradient that is infinite or not a number. An
        averaging would pass such numbers on to all other workers.

        * "raise": after the steps of a call, raise :class:`NonFiniteError` on all
          processes alike if a gradient or the parameters after a step were not finite.
          It names the workers in which that began, and the step. The process waits for
          the end of the computation in every call.
        * "skip": the worker makes no step of its own. Its gradient counts as zero (a
          momentum or weight decay of the optimizer still acts), its `model_state`
          stays as it was, and it goes on averaging. The metrics are those of the
          gradient that was left out. Parameters that are not finite are not noticed.
        * "isolate": the worker itself is left alone, and the others go on without it:
          what it sends counts as lost. Only mechanisms that can do without a message
          are accepted.

    Returns:
      `(workers, batches) -> (workers, metrics)`, where the leaves of `batches` and
      `metrics` have two leading axes, local workers and steps. It donates `workers`:
      afterwards only those that it returned can be used. Unless `nonfinite="raise"` it
      returns before the computation ends. It raises ValueError if the leading axes do
      not fit or, before computing anything, if `nonfinite="isolate"` and a mechanism
      needs every message, or if a code is not of the class that its mechanism needs;
      RuntimeError if the workers were donated before; TypeError if `gradient_fn`
      returns something else than gradients like the parameters, the model state and
      metrics; and :class:`NonFiniteError`, a `FloatingPointError`.

    Raises:
      TypeError: if the optimizer is none, as an asynchronous algorithm is, or the
        communicator is none, or if `gradient_fn` does not take three arguments.
      ValueError: if `nonfinite` is none of the three.

    Warns:
      UserWarning: in the first call, if a link of the optimizer acts on what a
        mechanism has averaged, and :func:`djax.check` finds that this is a mistake.

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
    check_choice("nonfinite", nonfinite, NonFinite)
    check_flags("make_steps", dispatch=dispatch)
    optimizer = as_transformation("make_steps", optimizer)
    check_communicator("make_steps", communicator)
    check_signature("make_steps", gradient_fn)
    if not dispatch:
        make = _scanned
    elif communicator.shares_device:
        make = _dispatched
    else:
        make = _stepwise
    worker = _Worker(gradient_fn, optimizer, nonfinite)
    program = make(worker, communicator)
    all_start_finite = jax.jit(communicator.spmd(all_finite))
    check = make_check(communicator)
    shapes = None

    def steps(workers: Workers, batches: PyTree) -> tuple[Workers, PyTree]:
        nonlocal shapes
        _check_workers(workers)
        _check_axes(workers, batches, communicator)
        if shapes is None:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), workers.params
            )
            _check_mechanisms(optimizer, communicator, workers.params, nonfinite)
        batches = jax.tree.map(jnp.asarray, batches)
        if nonfinite != "raise":
            workers, (metrics, _) = program(workers, batches)
            _warn_of_order(worker, communicator, shapes)
            return workers, metrics
        started = all_start_finite(workers.params)
        workers, (metrics, flaws) = program(workers, batches)
        _warn_of_order(worker, communicator, shapes)
        check(started, flaws, workers, metrics)
        return workers, metrics

    return steps


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What one worker does in a step."""

    gradient_fn: GradientFn
    optimizer: optax.GradientTransformation
    nonfinite: NonFinite
    suspicions: list[bool] = dataclasses.field(default_factory=list)

    def gradient(self, params: PyTree, model_state: PyTree, batch: PyTree) -> Any:
        """Returns what the gradient function makes, checked while it is traced."""
        made = self.gradient_fn(params, model_state, batch)
        check_gradients("make_steps", made, params, model_state)
        return made

    def apply(self, workers: Workers, made: Any) -> tuple[Workers, tuple[PyTree, Any]]:
        """Returns the worker after the step; the metrics, and what was not finite."""
        grads, model_state, metrics = made
        if self.nonfinite == "skip":
            grads, model_state = without_step(
                all_finite(grads), grads, model_state, workers.model_state
            )
        with observing() as observer:
            updates, opt_state = self.optimizer.update(
                grads, workers.opt_state, workers.params
            )
            observer.compare_returned(updates)
        self.suspicions.append(observer.suspicious)
        params = optax.apply_updates(workers.params, updates)
        flaws = flaw(grads, params) if self.nonfinite == "raise" else ()
        return Workers(params, opt_state, model_state), (metrics, flaws)

    def step(self, workers: Workers, batch: PyTree) -> tuple[Workers, Any]:
        """The gradient, and its application."""
        made = self.gradient(workers.params, workers.model_state, batch)
        return self.apply(workers, made)


def _scanned(worker: _Worker, communicator: Communicator) -> StepsFn:
    """All steps of all workers in one program."""

    def step(before, batch):
        after, measured = worker.step(before, batch)
        check_unchanged("make_steps", before, after)
        return after, measured

    def all_steps(state, batches):
        return jax.lax.scan(step, state, batches)

    return jax.jit(communicator.spmd(all_steps), donate_argnums=0)


def _stepwise(worker: _Worker, communicator: Communicator) -> StepsFn:
    """A program a step, for devices that each have one worker."""

    def one_step(state, batches, t):
        return worker.step(state, jax.tree.map(lambda x: x[t], batches))

    program = jax.jit(communicator.spmd(one_step), donate_argnums=0)

    def steps(workers, batches):
        history = []
        for t in range(_count_steps(batches)):
            now = replicate(communicator, t)
            workers, measured = program(workers, batches, now)
            history.append(measured)
        return workers, _stack(history)

    return steps


def _dispatched(worker: _Worker, communicator: Communicator) -> StepsFn:
    """A program for each worker's gradient, and one for the update of all."""

    @jax.jit
    def gradient(workers, batches, i, t):
        batch = jax.tree.map(lambda x: x[i, t], batches)
        params, model_state = jax.tree.map(
            lambda x: x[i], (workers.params, workers.model_state)
        )
        return worker.gradient(params, model_state, batch)

    def update(workers, results):
        made = jax.tree.map(lambda *xs: jnp.stack(xs), *results)
        return communicator.spmd(worker.apply)(workers, made)

    update = jax.jit(update, donate_argnums=0)

    def steps(workers, batches):
        history = []
        for t in range(_count_steps(batches)):
            results = [
                gradient(workers, batches, i, t) for i in range(communicator.size)
            ]
            workers, measured = update(workers, results)
            history.append(measured)
        return workers, _stack(history)

    return steps


def _check_workers(workers: Any) -> None:
    """Raises TypeError unless they are workers, RuntimeError if they were donated."""
    if not isinstance(workers, Workers):
        raise TypeError(
            f"steps needs the workers that init_workers returns, got {type(workers)}."
        )
    check_arrays("steps", workers, what="workers")


def _check_mechanisms(
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    params: PyTree,
    nonfinite: NonFinite,
) -> None:
    """Raises ValueError if a mechanism, or its code, cannot do what it has to.

    This is what :func:`djax.check` can tell without a trial of the whole optimizer.
    """
    parts = parts_within(optimizer, communicator, params)
    if nonfinite == "isolate":
        refuse("make_steps(nonfinite='isolate')", parts, "needs_every_message")
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
    if problems := problems_of_codes(parts, communicator, one):
        raise ValueError(f"make_steps: {problems[0]}")


def _warn_of_order(
    worker: "_Worker", communicator: Communicator, params: PyTree
) -> None:
    """Warns of what :func:`djax.check` finds, if a trace has been suspicious.

    Args:
      worker: what has been traced.
      communicator: where the workers live.
      params: shapes of one worker's.
    """
    if not any(worker.suspicions):
        return
    worker.suspicions.clear()
    try:
        check_optimizer(worker.optimizer, communicator, params)
    except ValueError as error:
        warnings.warn(f"make_steps: {error}", stacklevel=3)


def _check_axes(workers: Workers, batches: PyTree, communicator: Communicator) -> None:
    """Raises ValueError unless the batches are `[local workers, steps, ...]`."""
    check_leading_axis("steps", (workers, batches), communicator.rows)
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
