"""Compiled programs that run waves of events, with all workers on one device."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.finite import all_finite
from djax._arrays.precision import promote
from djax._interfaces import PyTree
from djax.communicators import simulated
from djax.training import GradientFn

from .._finite import applied, choose
from ..algorithms import EventTransformation
from ._events import Events
from ._rows import copies, put, stack, take
from ._waves import Waves


class Run(NamedTuple):
    """All workers during a simulation; every leaf has a leading axis of workers.

    Attributes:
      params: the model of each worker after its last event.
      state: the state of each worker's algorithm after its last event.
      started: the models from which the gradients in progress are computed.
      model_state: values that each worker's gradients pass on to the next one.
    """

    params: PyTree
    state: PyTree
    started: PyTree
    model_state: PyTree


class Wave(NamedTuple):
    """The arrays from which a program runs a wave, or many waves with one more axis.

    A wave has a fixed number of slots for events. Empty slots come last. The worker of
    an empty slot does not exist: its index is clipped to an existing worker when rows
    are read, and the result of the slot is not written.

    Attributes:
      ends: `int32[2, averagings]`, the two workers of each averaging.
      since: `float[2, averagings]`, the time since the previous event of each of them.
      averaging: `int32[]`, number of averagings, empty slots not counted.
      workers: `int32[gradients]`, the worker of each gradient.
      elapsed: `float[gradients]`, the time since the worker's previous event.
      steps: `int32[gradients]`, number of earlier gradients of all workers.
      slots: `int32[gradients]`, the row of each gradient's batch and metrics.
      computing: `int32[]`, number of gradients, empty slots not counted.
    """

    ends: Any
    since: Any
    averaging: Any
    workers: Any
    elapsed: Any
    steps: Any
    slots: Any
    computing: Any


def describe(events: Events, waves: Waves) -> Wave:
    """Returns the arrays from which a program runs these waves."""
    averagings, gradients = waves
    ends = np.stack([events.worker[averagings], events.peer[averagings]], 1)
    empty = gradients < 0
    steps = (np.cumsum(events.is_gradient) - 1)[gradients]
    first = steps[~empty].min(initial=np.iinfo(np.int32).max)
    wave = Wave(
        ends=np.where(averagings[:, None] < 0, events.size, ends),
        since=np.moveaxis(events.elapsed[averagings], -1, 1),
        averaging=(averagings >= 0).sum(1),
        workers=np.where(empty, events.size, events.worker[gradients]),
        elapsed=events.elapsed[gradients, 0],
        steps=steps,
        slots=np.where(empty, len(events), steps - first),
        computing=(~empty).sum(1),
    )
    floats = jnp.result_type(float)
    return jax.tree.map(
        lambda x: x.astype(floats if x.dtype == np.float64 else np.int32), wave
    )


class Programs(NamedTuple):
    """The compiled programs of a simulation.

    Attributes:
      start: `(params, model_state, computes) -> run` makes all workers as they are
        before the first event, out of copies. `computes` says whether there are
        gradients, for which the models are copied once more.
      looped: `(run, waves, batches, count) -> (run, (metrics, finite))` runs all waves
        in one program, and returns `(run, ())` if there are no gradients. `finite` is
        `bool[gradients, 2]`, from :func:`djax.asynchronous._finite.applied`.
      dispatched: does the same with a program for each gradient, and two programs for
        the rest of a wave.
      snapshot: `(run, since) -> dict` returns the fields of a snapshot, where `since`
        is the time since each worker's last event, `float[n]`.
    """

    start: Callable[..., Run]
    snapshot: Callable[..., dict[str, PyTree]]
    looped: Callable[..., tuple[Run, PyTree]]
    dispatched: Callable[..., tuple[Run, PyTree]]


@functools.lru_cache(maxsize=4)
def make_programs(
    algorithm: EventTransformation, gradient_fn: GradientFn | None, skip: bool
) -> Programs:
    """Makes the programs of a simulation, or returns them if they were made before.

    JAX keeps a compiled program as long as its function is alive. The functions are
    therefore made here and held by a small cache. Otherwise the programs of a user who
    makes new algorithms again and again would pile up in memory.

    Args:
      algorithm: the asynchronous algorithm of every worker.
      gradient_fn: computes one gradient; None if there are no gradients.
      skip: whether updates that are not finite are left out.
    """
    average = functools.partial(_average, algorithm)
    apply = functools.partial(_apply, algorithm, skip)
    gradient = jax.jit(functools.partial(_one_gradient, gradient_fn))
    looped = functools.partial(_looped, average, gradient_fn, apply)
    dispatched = functools.partial(
        _dispatched,
        jax.jit(average, donate_argnums=0),
        gradient,
        jax.jit(apply, donate_argnums=0),
    )
    start = jax.jit(functools.partial(_start, algorithm), static_argnums=2)
    snapshot = jax.jit(functools.partial(_snapshot, algorithm))
    return Programs(start, snapshot, jax.jit(looped, donate_argnums=0), dispatched)


def _start(algorithm, params: PyTree, model_state: PyTree, computes: bool) -> Run:
    """See :class:`Programs`."""
    return Run(
        params=copies(params),
        state=jax.vmap(algorithm.init)(params),
        started=copies(params) if computes else (),
        model_state=copies(model_state),
    )


def _snapshot(algorithm, run: Run, since: jax.Array) -> dict[str, PyTree]:
    """See :class:`Programs`."""
    params, state = jax.vmap(algorithm.mix)(run.params, run.state, since)
    finite = jax.vmap(all_finite)(params)
    return {
        "consensus_distance": _distance(params, finite),
        **copies({"params": params, "state": state, "model_state": run.model_state}),
    }


def _distance(params: PyTree, finite: jax.Array) -> jax.Array:
    """Returns the consensus distance of the finite models; NaN if none is finite."""
    size, count = len(finite), finite.sum()
    communicator = simulated(size)

    def distance(params, finite):
        # Zeros in place of models that are not finite add nothing to the sums.
        kept = jax.tree.map(
            lambda x: jnp.where(finite, promote(x), jnp.zeros_like(promote(x))), params
        )
        mean = jax.tree.map(
            lambda x: x * (size / count).astype(x.dtype), communicator.mean(kept)
        )
        squares = jax.tree.map(
            lambda x, m: jnp.sum(jnp.square(jnp.abs(x - m))), kept, mean
        )
        own = functools.reduce(operator.add, jax.tree.leaves(squares))
        return communicator.mean(jnp.where(finite, own, jnp.zeros_like(own)))

    return communicator.spmd(distance)(params, finite)[0] * (size / count)


def _looped(average, gradient_fn, apply, run: Run, waves: Wave, batches, count):
    """See :class:`Programs`."""

    def body(w, carry):
        run, measured = carry
        wave = jax.tree.map(lambda x: x[w], waves)
        run = average(run, wave)
        if wave.workers.size:
            # Gradients are computed from the models with which they were started.
            results = jax.vmap(gradient_fn)(
                take(run.started, wave.workers),
                take(run.model_state, wave.workers),
                take(batches, wave.slots),
            )
            run, finite = apply(run, wave, results)
            new = results[2], finite
            measured = put(measured, wave.computing, (wave.slots, new, None))
        return run, measured

    measured = ()
    if waves.workers.size:
        gradient = functools.partial(_one_gradient, gradient_fn)
        measured = _no_metrics(gradient, run, batches)
    return jax.lax.fori_loop(0, count, body, (run, measured))


def _dispatched(average, gradient, apply, run: Run, waves: Wave, batches, count):
    """See :class:`Programs`."""
    measured = {}
    for w in range(count):
        wave = jax.tree.map(lambda x, w=w: x[w], waves)
        run = average(run, wave)
        if real := int(wave.computing):
            results = [
                gradient(run, i, batches, slot)
                for i, slot in zip(wave.workers[:real], wave.slots, strict=False)
            ]
            metrics = [result[2] for result in results]
            results += results[-1:] * (len(wave.workers) - real)
            run, finite = apply(run, wave, stack(results))
            measured |= zip(
                wave.slots, zip(metrics, finite, strict=False), strict=False
            )
    if measured:
        return run, stack([measured[slot] for slot in sorted(measured)])
    computes = waves.workers.shape[1] > 0
    return run, _no_metrics(gradient, run, batches) if computes else ()


def _no_metrics(gradient, run: Run, batches: PyTree) -> PyTree:
    """Returns zeros in the shapes of the metrics and flags of all gradients."""
    like = jax.eval_shape(gradient, run, 0, batches, 0)[2]
    total = len(jax.tree.leaves(batches)[0])
    zeros = jax.tree.map(lambda x: jnp.zeros((total, *x.shape), x.dtype), like)
    return zeros, jnp.zeros((total, 2), bool)


def _one_gradient(gradient_fn, run: Run, i, batches: PyTree, slot):
    params, model_state = jax.tree.map(lambda x: x[i], (run.started, run.model_state))
    batch = jax.tree.map(lambda x: x[slot], batches)
    return gradient_fn(params, model_state, batch)


def _average(algorithm, run: Run, wave: Wave) -> Run:
    """Averages pairs of workers, except pairs where a model is not finite."""
    if not wave.ends.size:
        return run
    everyone = run.params, run.state
    before = [take(everyone, ends) for ends in wave.ends]
    mixed = [
        jax.vmap(algorithm.mix)(*rows, since)
        for rows, since in zip(before, wave.since, strict=True)
    ]
    finite = jax.vmap(all_finite)([params for params, _ in mixed])
    writes = []
    for k in (0, 1):
        (params, state), (peer, _) = mixed[k], mixed[1 - k]
        updates, averaged = jax.vmap(algorithm.average)(peer, state, params)
        averaged = optax.apply_updates(params, updates), averaged
        after = choose(finite, averaged, mixed[k])
        writes.append((wave.ends[k], after, before[k]))
    params, state = put(everyone, wave.averaging, *writes)
    return run._replace(params=params, state=state)


def _apply(algorithm, skip, run: Run, wave: Wave, results) -> tuple[Run, jax.Array]:
    """Applies gradients, and starts the next ones; also returns which are finite."""

    def step(before, results, elapsed, count):
        (params, state, old), (grads, new, _) = before, results
        options = {"elapsed": elapsed, "global_step": count}
        params, state, finite = applied(
            algorithm, skip, grads, state, params, **options
        )
        model_state = choose(finite.all(), new, old) if skip else new
        return Run(params, state, params, model_state), finite

    before = take((run.params, run.state, run.model_state), wave.workers)
    after, finite = jax.vmap(step)(before, results, wave.elapsed, wave.steps)
    return put(run, wave.computing, (wave.workers, after, None)), finite
