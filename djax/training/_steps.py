"""Loops over many training steps of all local workers.

The loop is a compiled program: for small models, starting a program at every step would
take longer than the step itself. The same functions also run one worker in each process
under MPI, and one worker on each device of a mesh. So a script written for the
simulator can be launched by `mpirun` unchanged.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arguments import check_choice, check_flags, of_the_run
from djax._arrays.checks import check_arrays, check_leading_axis
from djax._arrays.finite import all_finite
from djax._checking.check import check as check_optimizer
from djax._checking.codes import problems_of_codes
from djax._interfaces import Communicator, PyTree
from djax._layout import placed
from djax._mechanism.refusals import Part, refuse
from djax._mechanism.value import parts_within
from djax._transformations import as_transformation

from ._gradient_fn import GradientFn, check_signature
from ._layout import layout_of, layout_of_state
from ._nonfinite import NonFinite, make_check
from ._programs import OneWorker, StepsFn, Workers, dispatched, scanned, stepwise


def init_workers(
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    params: PyTree,
    model_state: PyTree = (),
) -> Workers:
    """Makes the local workers as they are before the first step.

    Args:
      optimizer: the optimizer of every worker, a chain that contains the mechanism.
      communicator: where the workers live.
      params: the initial models, arrays `[local workers, ...]`, which
        :func:`djax.communicators.replicate` makes of one model. On a mesh, each state
        of the optimizer that belongs to a parameter lies on the devices as the
        parameter does.
      model_state: values that the gradient function passes on from step to step, arrays
        `[local workers, ...]`.

    Returns:
      The workers. Their arrays are copies, so that the programs of :func:`make_steps`
      may reuse their memory.

    Raises:
      TypeError: if `optimizer` is not an optax transformation (an asynchronous
        algorithm is not), `communicator` is not a communicator, or a leaf is not an
        array.
      ValueError: if a leaf has no leading axis of local workers.
    """
    optimizer = as_transformation("init_workers", optimizer)
    communicator = of_the_run("init_workers", communicator)
    check_arrays("init_workers", params, modules=False)
    check_arrays("init_workers", model_state)

    def start(params, model_state):  # One program: each takes milliseconds to compile.
        opt_state = communicator.spmd(optimizer.init)(params)
        params, model_state = jax.tree.map(jnp.copy, (params, model_state))
        return Workers(params, opt_state, model_state)

    layout = None
    if communicator.sharding is not None:
        place = functools.partial(placed, "init_workers", communicator)
        params = place(params, what="params")
        model_state = place(model_state, what="model_state")
        state = jax.eval_shape(start, params, model_state).opt_state
        layout = Workers(
            layout_of(communicator, params),
            layout_of_state(communicator, state, params),
            layout_of(communicator, model_state),
        )
    return jax.jit(start, out_shardings=layout)(params, model_state)


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
      gradient_fn: the function by which ONE worker computes its gradient,
        `(params, model_state, batch) -> (grads, model_state, metrics)`.
      optimizer: the optimizer, a chain that contains the mechanism.
      communicator: where the workers live.
      dispatch: whether the gradients are computed one worker after another, each by a
        program of its own, and only the optimizer runs for all workers at once. This
        is faster for models with convolutions; the numbers are the same.
      nonfinite: what happens to a gradient that is infinite or not a number. Averaging
        would spread such numbers to all other workers.

        * "raise": if a gradient, or the parameters after a step, were not finite,
          :class:`NonFiniteError` is raised on all processes after the last step of the
          call. The error names the first such step and the workers in which it
          happened. For this check each call waits until its computation has ended.
        * "skip": the gradient counts as zero, so that only momentum and weight decay
          of the optimizer act. The worker's `model_state` stays as it was, and the
          worker still averages. The returned metrics are those of the gradient that
          was left out. Parameters that are not finite are not noticed.
        * "isolate": the worker keeps its model, and the other workers continue without
          it: its messages count as lost. Only mechanisms that tolerate lost messages
          are accepted.

    Returns:
      A function `(workers, batches) -> (workers, metrics)`, where the leaves of
      `batches` and `metrics` are arrays `[local workers, steps, ...]`. The function
      reuses the memory of `workers`: afterwards only the workers that it has returned
      can be used. Unless `nonfinite="raise"`, it returns before the computation ends.

      The function raises the following errors:

      * ValueError, before anything is computed, if the leading axes do not fit, if
        `nonfinite="isolate"` and a mechanism needs every message, or if a compressor is
        not of the class that its mechanism needs.
      * RuntimeError, if the memory of `workers` was reused before.
      * TypeError, if `gradient_fn` does not return gradients like the parameters, the
        model state and metrics.
      * :class:`NonFiniteError`, which is a `FloatingPointError`.

    Raises:
      TypeError: if `optimizer` is not an optax transformation (an asynchronous
        algorithm is not), `communicator` is not a communicator, or `gradient_fn` does
        not take three arguments.
      ValueError: if `nonfinite` is none of the three.

    Warns:
      UserWarning: in the first call, if a part of the optimizer changes what a
        mechanism has averaged, and :func:`djax.check` finds that this is a mistake.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> communicator = djax.communicators.simulated(2)
      >>> optimizer = djax.all_reduce_sgd(0.5, communicator)
      >>> def gradient_fn(x, model_state, target):
      ...     return x - target, model_state, {"loss": 0.5 * (x - target) ** 2}
      >>> x = djax.communicators.replicate(communicator, 0.0)
      >>> workers = djax.training.init_workers(optimizer, communicator, x)
      >>> steps = djax.training.make_steps(gradient_fn, optimizer, communicator)
      >>> targets = jnp.asarray([[1.0] * 9, [3.0] * 9])  # [workers, steps]
      >>> workers, metrics = steps(workers, targets)
      >>> print(workers.params.round(2), metrics["loss"].shape)
      [2. 2.] (2, 9)
    """
    check_choice("nonfinite", nonfinite, NonFinite)
    check_flags("make_steps", dispatch=dispatch)
    optimizer = as_transformation("make_steps", optimizer)
    communicator = of_the_run("make_steps", communicator)
    check_signature("make_steps", gradient_fn)
    if not dispatch:
        make = scanned
    elif communicator.shares_device:
        make = dispatched
    else:
        make = stepwise
    worker = OneWorker(gradient_fn, optimizer, nonfinite)
    program = make(worker, communicator)
    all_start_finite = jax.jit(communicator.spmd(all_finite))
    check = make_check(communicator)
    shapes = None

    def steps(workers: Workers, batches: PyTree) -> tuple[Workers, PyTree]:
        nonlocal shapes
        _check_workers(workers)
        if communicator.sharding is not None:
            batches = placed("steps", communicator, batches, what=1)
        _check_axes(workers, batches, communicator)
        if shapes is None:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), workers.params
            )
            parts = parts_within(optimizer, communicator, workers.params)
            _check_mechanisms(parts, communicator, shapes, nonfinite)
        batches = jax.tree.map(jnp.asarray, batches)
        started = all_start_finite(workers.params) if nonfinite == "raise" else None
        workers, (metrics, flaws) = program(workers, batches)
        _warn_of_order(worker, communicator, shapes)
        if nonfinite == "raise":
            check(started, flaws, workers, metrics)
        return workers, metrics

    return steps


def _check_workers(workers: Any) -> None:
    """Raises TypeError unless given workers, RuntimeError if their memory is reused."""
    if not isinstance(workers, Workers):
        raise TypeError(
            f"steps needs the workers that init_workers returns, got {type(workers)}."
        )
    check_arrays("steps", workers, what="workers")


def _check_mechanisms(
    parts: list[Part], communicator: Communicator, shapes: PyTree, nonfinite: NonFinite
) -> None:
    """Raises ValueError if a mechanism, or its compressor, does not fit.

    This is the part of :func:`djax.check` that needs no trial of the whole optimizer.
    """
    if nonfinite == "isolate":
        refuse("make_steps(nonfinite='isolate')", parts, "needs_every_message")
    if problems := problems_of_codes(parts, communicator, shapes):
        raise ValueError(f"make_steps: {problems[0]}")


def _warn_of_order(
    worker: OneWorker, communicator: Communicator, params: PyTree
) -> None:
    """Warns of mistakes that :func:`djax.check` finds, if tracing raised a suspicion.

    Args:
      worker: the worker whose step was traced.
      communicator: where the workers live.
      params: one worker's parameters, or their shapes.
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
