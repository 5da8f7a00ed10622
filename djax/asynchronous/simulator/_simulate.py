"""Simulates asynchronous workers exactly and fast, on one device.

One program for each event would take too long. The events are therefore put into waves
(:mod:`djax.asynchronous.simulator._waves`). A wave is one batch of averagings, followed
by one batch of gradients. All waves up to the next snapshot are run by one program. The
results are the same as if the events were run one after another, up to the rounding of
batched matrix products.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from djax._arguments import check_choice
from djax._arrays.checks import check_leading_axis
from djax._arrays.keys import is_key
from djax._interfaces import PyTree
from djax.training import GradientFn, NonFinite, NonFiniteError, check_gradient_fn

from .._finite import describe as describe_nonfinite
from ..algorithms import EventTransformation, other_rates
from ._batches import Batches
from ._events import Events
from ._programs import describe, make_programs
from ._waves import capacities, level


class Snapshot(NamedTuple):
    """All workers at one time of a simulated run.

    Attributes:
      time: the time. Its unit is the time in which a worker computes one gradient.
      params: the models, mixed up to this time, with a leading axis of workers.
      state: the states of the algorithm, mixed up to this time, with a leading axis of
        workers.
      model_state: values that a worker's gradients pass on to the next one, with a
        leading axis of workers.
      metrics: metrics of the gradients since the previous snapshot, `[gradients, ...]`,
        in the order of the events.
      consensus_distance: `float[]`, the variance of the models that are finite, as in
        :func:`djax.metrics.consensus_distance`.
    """

    time: float
    params: PyTree
    state: PyTree
    model_state: PyTree
    metrics: PyTree
    consensus_distance: jax.Array


def simulate(
    algorithm: EventTransformation,
    events: Events,
    params: PyTree,
    gradient_fn: GradientFn | None = None,
    batches: Callable[[int], PyTree] | None = None,
    *,
    times: Sequence[float] = (),
    model_state: PyTree = (),
    dispatch: bool = False,
    nonfinite: NonFinite = "raise",
) -> Iterator[Snapshot]:
    """Runs an asynchronous algorithm through a list of events.

    A gradient is computed from the worker's model at the time of its previous gradient,
    and applied at the time of its event. Meanwhile averagings may change the model. The
    base optimizer counts the worker's own steps. It also receives the number of
    gradients that all workers have computed before, as the extra argument
    `global_step`; see :func:`djax.asynchronous.in_global_steps`. An optimizer that
    draws noise draws the same noise on every worker, since all workers start from the
    same state.

    Args:
      algorithm: the algorithm, made by :func:`djax.acid` or :func:`djax.adpsgd`.
      events: gradients and averagings, made by :func:`djax.asynchronous.draw_events`.
      params: the workers' first models, with a leading axis of workers
        (:func:`djax.communicators.replicate`).
      gradient_fn: the function by which ONE worker computes its gradient,
        `(params, model_state, batch) -> (grads, model_state, metrics)`, as in
        :func:`djax.training.make_steps`. It is not needed if the events have no
        gradients.
      batches: `epoch -> tree` with leaves `[workers, steps, ...]`. A worker's gradients
        use its steps one after another, in the epochs 0, 1, ... All epochs need the
        same number of steps. Not needed if the events have no gradients.
      times: the times of the snapshots, ascending. A last snapshot is always taken at
        the end of the events. Snapshots do not change the results. But the batches of
        all gradients between two snapshots are in the device's memory at once.
      model_state: values that a worker's gradients pass on to the next one, with a
        leading axis of workers.
      dispatch: whether gradients are computed one by one, instead of in one program
        with everything else. This is faster for models with convolutions.
      nonfinite: what happens if a gradient is not finite, or leads to a model that is
        not finite.

        * "raise": an error is raised before the next snapshot.
        * "skip": the gradient is not applied and the model state stays as it was
          before, although the gradient counts as computed.
        * "isolate": the gradient is applied, and the worker continues with the result.

        In each case a model that is not finite is not averaged with others: such an
        averaging changes neither of the two workers' models except for mixing.

    Returns:
      An iterator over :class:`Snapshot` values. Each is computed when it is asked for.

    Raises:
      TypeError: if the algorithm or the events have a wrong type, or if `gradient_fn`
        does not return gradients like the parameters, the model state and metrics.
      ValueError: before anything is computed, if arguments do not fit together (such as
        constants of :func:`djax.acid_constants` for another graph or rate than that of
        the events), or if `times` do not ascend in [0, `events.duration`].
      djax.asynchronous.NonFiniteError: from the iterator, if a gradient or model is not
        finite and `nonfinite` is "raise". It names the worker and its gradient, and is
        a `FloatingPointError`.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> ring = djax.topologies.ring(4)
      >>> acid = djax.acid(optax.sgd(0.1), djax.acid_constants(ring))
      >>> draw = djax.asynchronous.draw_events
      >>> events = draw(ring, gradients=400, variation=0)
      >>> def gradient_fn(x, model_state, target):
      ...     return x - target, model_state, {"loss": 0.5 * (x - target) ** 2}
      >>> targets = jnp.asarray([[1.0], [2.0], [3.0], [4.0]])  # [workers, steps]
      >>> *_, last = djax.asynchronous.simulate(
      ...     acid, events, jnp.zeros(4), gradient_fn, lambda epoch: targets
      ... )
      >>> print(last.params.mean().round(1), last.metrics["loss"].shape)
      2.5 (400,)
    """
    if not isinstance(algorithm, EventTransformation):
        raise TypeError(
            "simulate needs an asynchronous algorithm, djax.acid(...) or "
            f"djax.adpsgd(...), got {algorithm!r}."
        )
    if not isinstance(events, Events):
        raise TypeError(
            f"simulate needs events, such as those of draw_events, got {events!r}."
        )
    if mistake := other_rates(algorithm, events.asked):
        raise ValueError(f"simulate: {mistake}")
    if not jax.tree.leaves(params):
        raise ValueError("simulate: params is a tree without arrays, not a model.")
    check_leading_axis("simulate: params", (params,), events.size)
    check_leading_axis("simulate: model_state", (model_state,), events.size)
    check_choice("simulate: nonfinite", nonfinite, NonFinite)
    ends = _check_times(times, events.duration)
    stream = None
    if events.is_gradient.any():
        if gradient_fn is None or batches is None:
            raise ValueError(
                "simulate: the events have gradients, which need a gradient_fn and "
                "batches."
            )
        stream = Batches(batches, events)
        _check_gradient_fn(gradient_fn, params, model_state, stream)
    programs = make_programs(algorithm, gradient_fn, nonfinite == "skip")
    program = programs.dispatched if dispatch else programs.looped
    raises = nonfinite == "raise"
    run = programs.start(params, model_state, stream is not None)
    return _snapshots(programs, program, events, run, stream, ends, raises)


def _check_gradient_fn(
    gradient_fn: GradientFn, params: PyTree, model_state: PyTree, stream: Batches
) -> None:
    """Raises TypeError unless a gradient of the first worker is as it should be."""

    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    model, state = jax.eval_shape(first, (params, model_state))
    check_gradient_fn("simulate", gradient_fn, model, state, stream.example)


def _snapshots(
    programs, program, events, run, stream, ends, raises
) -> Iterator[Snapshot]:
    sizes = capacities(events)
    last = np.searchsorted(events.time, ends, side="right")
    spans = list(zip([0, *last[:-1]], last, strict=True))
    stretches = [level(events, *span, *sizes) for span in spans]
    counts = [len(waves.gradients) for waves in stretches]
    gradients = [int(events.is_gradient[i:j].sum()) for i, j in spans]
    # A stretch is the list of events between two snapshots. All stretches are padded to
    # one shape, so that one compiled program runs them all. The shape is rounded up, so
    # that similar events have it too.
    longest = 2 ** (max(counts) - 1).bit_length() if max(counts) else 1
    most = -(-max(gradients) // events.size) * events.size
    before = 0
    for end, waves, count, new in zip(ends, stretches, counts, gradients, strict=True):
        described = jax.tree.map(lambda x: _pad(x, longest), describe(events, waves))
        batches = stream.take(new, most) if stream else ()
        run, measured = program(run, described, batches, count)
        both = measured or ((), ())
        measured, finite = jax.tree.map(lambda x, new=new: _first(x, new), both)
        if raises and new:
            _check_finite(events, before, np.asarray(finite))
        before += new
        since = np.asarray(end - events.last_times(end), jnp.result_type(float))
        yield Snapshot(
            time=float(end), metrics=measured, **programs.snapshot(run, since)
        )


def _check_finite(events: Events, before: int, finite: np.ndarray) -> None:
    """Raises NonFiniteError if a gradient, or the model after it, is not finite.

    Args:
      events: all events of the simulation.
      before: number of gradients of earlier stretches.
      finite: `bool[gradients, 2]`: whether each gradient, and the model after it, are
        finite.
    """
    if finite.all():
        return
    first = int(np.argmin(finite.all(1)))
    workers = events.worker[events.is_gradient][: before + first + 1]
    worker = int(workers[-1])
    number = int((workers == worker).sum())
    text = describe_nonfinite(worker, number, finite[first])
    raise NonFiniteError(f"simulate: {text}", (worker,), number - 1)


def _first(array: jax.Array, count: int) -> jax.Array:
    """Returns the first rows; JAX would compile a program for each number of rows."""
    if len(array) == count:
        return array
    # NumPy has no typed keys.
    return array[:count] if is_key(array) else jnp.asarray(np.asarray(array)[:count])


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])


def _check_times(times: Sequence[float], duration: float) -> np.ndarray:
    """Returns the times of all snapshots, the end of the run included once."""
    given = np.asarray(times, np.float64)
    # A time that is computed as a multiple may be larger by rounding.
    end = np.isclose(given, duration, rtol=1e-12, atol=0)
    given = np.where(end, duration, given)
    if given.ndim != 1 or not (np.diff(given, prepend=0.0, append=duration) >= 0).all():
        raise ValueError(
            "simulate: times must ascend, between 0 and the events' duration "
            f"{duration:.6g}; got {given.tolist()}."
        )
    return np.append(given[given < duration], duration)
