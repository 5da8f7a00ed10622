"""An exact simulation of workers that never wait, on one device.

The events are put into waves (:mod:`djax.asynchronous.simulator._waves`); a wave is one
batch of averagings and then one of gradients, and all waves up to the next moment of
interest are one program. What comes out is what the events give one after another, but
for the rounding of batched matrix products.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_choice
from djax._interfaces import PyTree
from djax.asynchronous._finite import describe as describe_nonfinite
from djax.asynchronous.algorithms._acid import EventTransformation, other_rates
from djax.communicators._common import check_leading_axis
from djax.training._gradient_fn import GradientFn, check_gradient_fn
from djax.training._nonfinite import NonFinite, NonFiniteError

from ._batches import Batches
from ._events import Events
from ._programs import Run, copies, describe, make_programs
from ._waves import capacities, level


class Moment(NamedTuple):
    """All workers at one time; every leaf has a leading axis of workers.

    Attributes:
      time: when this is.
      params: their models, mixed up to this time.
      state: their states of the algorithm, likewise.
      model_state: what their gradients carry along.
      metrics: of the gradients since the previous moment, `[gradients, ...]` in the
        order of the events.
      consensus_distance: `float[]`, the models' variance, as in
        :func:`djax.metrics.consensus_distance`, of those that are finite.
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
) -> Iterator[Moment]:
    """Runs an asynchronous algorithm through a list of events.

    A gradient is computed from the worker's model at the time of its previous gradient,
    and applied when it is due; averagings change the model meanwhile. The base
    optimizer counts the worker's own steps, and is given the number of all gradients
    before as the extra argument `global_step`
    (:func:`djax.asynchronous.in_global_steps`). One that draws noise draws the same on
    every worker, as all start from one state.

    Args:
      algorithm: :func:`djax.acid` or :func:`djax.adpsgd`.
      events: what happens when, from :func:`djax.asynchronous.draw_events`.
      params: the workers' first models, with a leading axis of workers
        (:func:`djax.communicators.replicate`).
      gradient_fn: what ONE worker computes, as in :func:`djax.simulation.make_steps`:
        `(params, model_state, batch) -> (grads, model_state, metrics)`. Not needed,
        like the batches, where there are no gradients.
      batches: `epoch -> tree` with leaves `[workers, steps, ...]`: a worker's gradients
        take one after another, in the epochs 0, 1, ...; always the same number of
        steps.
      times: when to look, ascending; the end of the events always is looked at, last.
        Looking changes nothing. In between, the batches of all gradients are in the
        device's memory at once.
      model_state: what the gradients carry along, with a leading axis of workers.
      dispatch: compute the gradients one by one, for models with convolutions, instead
        of in one program with everything else.
      nonfinite: what happens to a gradient that is not finite, or that leads to a model
        that is not. `"raise"`: an error before the next moment; `"skip"`: it is not
        applied, and the model state stays as it was before, although it counts as
        computed; `"isolate"`: nothing is done about the worker. In each case models
        that are not finite are not averaged with others: the averaging counts as not
        made, at both ends.

    Returns:
      An iterator over the :class:`Moment`\\ s, which computes as it goes.

    Raises:
      TypeError: if the algorithm or the events are none, or what `gradient_fn` returns
        does not fit.
      ValueError: if arguments do not fit together, such as constants of
        :func:`djax.acid_constants` for another graph or rate than the events', or
        `times` are not ascending in [0, `events.duration`]; before anything is
        computed.
      djax.asynchronous.NonFiniteError: a `FloatingPointError`, from the iterator, which
        names the worker and its gradient; unless `nonfinite` says otherwise.

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
        check_gradient_fn(
            "simulate",
            gradient_fn,
            jax.tree.map(lambda x: x[0], params),
            jax.tree.map(lambda x: x[0], model_state),
            stream.example,
        )
    start = copies((params, model_state))
    programs = make_programs(algorithm, gradient_fn, nonfinite == "skip")
    program = programs.dispatched if dispatch else programs.looped
    raises = nonfinite == "raise"
    return _moments(programs, program, events, start, stream, ends, raises)


def in_global_steps(schedule: optax.Schedule) -> "GlobalSchedule":
    """A schedule of the gradients of all workers together, instead of one's own.

    For optimizers within :func:`simulate`, by way of `optax.inject_hyperparams`, whose
    `static_args` may name the optimizer's other arguments.

    Args:
      schedule: of the number of gradients that all workers have computed.

    Returns:
      A stateful schedule, which reads the extra argument `global_step` of `update`.

    Examples:
      >>> import djax, optax
      >>> decay = djax.asynchronous.in_global_steps(optax.linear_schedule(0.1, 0, 6400))
      >>> adpsgd = djax.adpsgd(optax.inject_hyperparams(optax.sgd)(decay))
    """
    return GlobalSchedule(schedule)


class GlobalSchedule:
    """An `optax` stateful schedule; see :func:`in_global_steps`."""

    def __init__(self, schedule: optax.Schedule):
        """Takes the schedule of the number of all gradients."""
        self._schedule = schedule

    def init(self) -> tuple[()]:
        """Returns no state."""
        return ()

    def update(self, state: tuple[()], **extra_args: Any) -> tuple[()]:
        """Returns no state; raises ValueError without `global_step`."""
        if "global_step" not in extra_args:
            raise ValueError(
                "in_global_steps: update needs the extra argument global_step, the "
                "number of gradients of all workers so far, as simulate gives it."
            )
        return state

    def __call__(self, state: tuple[()], **extra_args: Any) -> ArrayLike:
        """Returns the schedule's value at the global step, at first 0."""
        if not isinstance(state, tuple):  # Called as a schedule of a counter.
            raise TypeError(
                "in_global_steps: use optax.inject_hyperparams(optax.sgd)(schedule), "
                "not optax.sgd(schedule), which passes the worker's own counter."
            )
        return self._schedule(jnp.asarray(extra_args.get("global_step", 0), jnp.int32))


def _moments(
    programs, program, events, start, stream, ends, raises
) -> Iterator[Moment]:
    params, model_state = start
    run = Run(
        params=params,
        state=programs.init(params),
        started=copies(params) if stream else (),
        model_state=model_state,
    )
    sizes = capacities(events)
    last = np.searchsorted(events.time, ends, side="right")
    spans = list(zip([0, *last[:-1]], last, strict=True))
    stretches = [level(events, *span, *sizes) for span in spans]
    counts = [len(waves.gradients) for waves in stretches]
    gradients = [int(events.is_gradient[i:j].sum()) for i, j in spans]
    # All stretches, and those of similar events, have the same shapes: one program.
    longest = 2 ** (max(counts) - 1).bit_length() if max(counts) else 1
    most = -(-max(gradients) // events.size) * events.size
    before = 0
    for end, waves, count, new in zip(ends, stretches, counts, gradients, strict=True):
        described = jax.tree.map(lambda x: _pad(x, longest), describe(events, waves))
        batches = stream.take(new, most) if stream else ()
        run, measured = program(run, described, batches, count)
        measured, finite = jax.tree.map(
            lambda x, new=new: x[:new], measured or ((), ())
        )
        if raises and new:
            _check_finite(events, before, np.asarray(finite))
        before += new
        since = jnp.asarray(end - events.last_times(end), jnp.result_type(float))
        yield Moment(
            time=float(end),
            metrics=measured,
            **programs.look(run, since),
        )


def _check_finite(events: Events, before: int, finite: np.ndarray) -> None:
    """Raises NonFiniteError if a gradient is not finite, or led to such a model.

    Args:
      events: of the simulation.
      before: number of gradients before these.
      finite: `bool[gradients, 2]`.
    """
    if finite.all():
        return
    first = int(np.argmin(finite.all(1)))
    workers = events.worker[events.is_gradient][: before + first + 1]
    worker = int(workers[-1])
    number = int((workers == worker).sum())
    text = describe_nonfinite(worker, number, finite[first])
    raise NonFiniteError(f"simulate: {text}", (worker,), number - 1)


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate(
        [array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)]
    )


def _check_times(times: Sequence[float], duration: float) -> np.ndarray:
    """Returns them and the end, once."""
    given = np.asarray(times, np.float64)
    end = np.isclose(given, duration, rtol=1e-12, atol=0)  # Products may be above it.
    given = np.where(end, duration, given)
    if given.ndim != 1 or not (np.diff(given, prepend=0.0, append=duration) >= 0).all():
        raise ValueError(
            "simulate: times must ascend, between 0 and the events' duration "
            f"{duration:.6g}; got {given.tolist()}."
        )
    return np.append(given[given < duration], duration)
