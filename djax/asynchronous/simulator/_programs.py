"""Waves of events as compiled programs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax import metrics
from djax._interfaces import PyTree
from djax.asynchronous._finite import applied, choose
from djax.communicators import simulated
from djax.training._nonfinite import all_finite

from ._events import Events
from ._waves import Waves


class Run(NamedTuple):
    """What the waves change, with a leading axis of workers.

    Attributes:
      params: as of each worker's last event.
      state: likewise.
      started: the models that the gradients now being computed are taken at.
      model_state: of the workers.
    """

    params: PyTree
    state: PyTree
    started: PyTree
    model_state: PyTree


class Wave(NamedTuple):
    """What a program needs to know of a wave; with one more axis, of many.

    Empty slots come last and have workers that do not exist: what those read is
    clipped, and what they would write is dropped.

    Attributes:
      ends: `int32[2, averagings]`, the two ends.
      since: `float[2, averagings]`, the time since the previous event of each.
      averaging: `int32[]`, how many averagings there are.
      workers: `int32[gradients]`.
      elapsed: `float[gradients]`, the time since the worker's previous event.
      steps: `int32[gradients]`, how many gradients came before, over all workers.
      slots: `int32[gradients]`, where the stretch's batches and metrics have them.
      computing: `int32[]`, how many gradients there are.
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
    """Looks up what the waves' events are."""
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
    """What a simulation runs.

    Attributes:
      init: `params -> state`, of all workers.
      looped: `(run, waves, batches, count) -> (run, (metrics, finite))`, all waves in
        one program, or `(run, ())` without any gradients; `finite` is
        `bool[gradients, 2]`, of :func:`djax.asynchronous._finite.applied`.
      dispatched: the same, with a program for each gradient, and two for everything
        else of a wave.
      look: `(run, since) -> dict`, what a moment shows, a time after each worker's last
        event.
    """

    init: Callable[..., PyTree]
    look: Callable[..., dict[str, PyTree]]
    looped: Callable[..., tuple[Run, PyTree]]
    dispatched: Callable[..., tuple[Run, PyTree]]


@functools.lru_cache(maxsize=4)
def make_programs(algorithm, gradient_fn, skip: bool) -> Programs:
    """Makes the programs, which other simulations of the same things share.

    JAX keeps what it has compiled as long as somebody holds the function. These are
    functions of their own, held by a cache of a few, so that the programs of algorithms
    that are made anew again and again do not pile up in memory.

    Args:
      algorithm: what every worker does.
      gradient_fn: what one worker computes.
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
    init = jax.jit(lambda params: jax.vmap(algorithm.init)(params))
    look = jax.jit(functools.partial(_look, algorithm))
    return Programs(init, look, jax.jit(looped, donate_argnums=0), dispatched)


def copies(tree: PyTree) -> PyTree:
    """Copies what the next stretch donates."""
    return jax.tree.map(jnp.copy, tree)


def _look(algorithm, run: Run, since: jax.Array) -> dict[str, PyTree]:
    """See :class:`Programs`."""
    params, state = jax.vmap(algorithm.mix)(run.params, run.state, since)
    finite = jax.vmap(all_finite)(params)
    return {
        "consensus_distance": _distance(params, finite),
        **copies({"params": params, "state": state, "model_state": run.model_state}),
    }


def _distance(params: PyTree, finite: jax.Array) -> jax.Array:
    """The consensus distance of those that are finite; NaN if none is."""
    size, count = len(finite), finite.sum()
    communicator = simulated(size)

    def distance(params, finite):
        # All others stand where the mean of these is: they add nothing to the sum.
        kept = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), params)
        mean = jax.tree.map(
            lambda x: x * (size / count).astype(x.dtype), communicator.mean(kept)
        )
        moved = jax.tree.map(lambda x, m: jnp.where(finite, x, m), params, mean)
        return metrics.consensus_distance(moved, communicator)

    return communicator.spmd(distance)(params, finite)[0] * (size / count)


def _looped(average, gradient_fn, apply, run: Run, waves: Wave, batches, count):
    """See :class:`Programs`."""

    def body(w, carry):
        run, measured = carry
        wave = jax.tree.map(lambda x: x[w], waves)
        run = average(run, wave)
        if wave.workers.size:
            results = _compute(gradient_fn, run, wave, batches)
            run, finite = apply(run, wave, results)
            new = results[2], finite
            measured = _put(measured, wave.computing, (wave.slots, new, None))
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
            run, finite = apply(run, wave, _stack(results))
            measured |= zip(
                wave.slots, zip(metrics, finite, strict=False), strict=False
            )
    if measured:
        return run, _stack([measured[slot] for slot in sorted(measured)])
    computes = waves.workers.shape[1] > 0
    return run, _no_metrics(gradient, run, batches) if computes else ()


def _no_metrics(gradient, run: Run, batches: PyTree) -> PyTree:
    """Zeros for the metrics and flags of all gradients of a stretch."""
    like = jax.eval_shape(gradient, run, 0, batches, 0)[2]
    total = len(jax.tree.leaves(batches)[0])
    zeros = jax.tree.map(lambda x: jnp.zeros((total, *x.shape), x.dtype), like)
    return zeros, jnp.zeros((total, 2), bool)


def _one_gradient(gradient_fn, run: Run, i, batches: PyTree, slot):
    params, model_state = jax.tree.map(lambda x: x[i], (run.started, run.model_state))
    batch = jax.tree.map(lambda x: x[slot], batches)
    return gradient_fn(params, model_state, batch)


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _average(algorithm, run: Run, wave: Wave) -> Run:
    """Pairs of workers exchange their models, unless one of the two is not finite."""
    if not wave.ends.size:
        return run
    everyone = run.params, run.state
    before = [_rows(everyone, ends) for ends in wave.ends]
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
    params, state = _put(everyone, wave.averaging, *writes)
    return run._replace(params=params, state=state)


def _compute(gradient_fn, run: Run, wave: Wave, batches: PyTree):
    """Gradients of the models that they were started at."""
    return jax.vmap(gradient_fn)(
        _rows(run.started, wave.workers),
        _rows(run.model_state, wave.workers),
        _rows(batches, wave.slots),
    )


def _apply(algorithm, skip, run: Run, wave: Wave, results) -> tuple[Run, jax.Array]:
    """Gradients are due, and the next ones start; also returns which are finite."""

    def step(before, results, elapsed, count):
        (params, state, old), (grads, new, _) = before, results
        options = {"elapsed": elapsed, "global_step": count}
        params, state, finite = applied(
            algorithm, skip, grads, state, params, **options
        )
        model_state = choose(finite.all(), new, old) if skip else new
        return Run(params, state, params, model_state), finite

    before = _rows((run.params, run.state, run.model_state), wave.workers)
    after, finite = jax.vmap(step)(before, results, wave.elapsed, wave.steps)
    return _put(run, wave.computing, (wave.workers, after, None)), finite


def _rows(tree: PyTree, index: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), tree)


def _put(tree: PyTree, count: jax.Array, *writes: tuple) -> PyTree:
    """Writes rows into arrays of all workers.

    Args:
      tree: the arrays.
      count: how many of the rows are written, the first ones.
      *writes: where, what, and what has been there: leaves that are the very same are
        left alone.
    """
    targets, structure = jax.tree.flatten(tree)
    changed: dict[int, list] = {i: [] for i in range(len(targets))}
    for index, rows, before in writes:
        old = jax.tree.leaves(before) if before is not None else [None] * len(targets)
        for i, (new, known) in enumerate(zip(jax.tree.leaves(rows), old, strict=True)):
            if new is not known:
                changed[i].append((index, new))

    def write(k, targets):
        targets = dict(targets)
        for i in targets:
            for index, new in changed[i]:
                targets[i] = jax.lax.dynamic_update_index_in_dim(
                    targets[i], new[k], index[k], 0
                )
        return targets

    def one_by_one(targets):
        return jax.lax.fori_loop(0, count, write, targets)

    def all_at_once(targets):
        targets = dict(targets)
        for i in targets:
            for index, new in changed[i]:
                targets[i] = targets[i].at[index].set(new, mode="drop")
        return targets

    # On CPUs XLA's scatter takes several times as long as a loop over its rows.
    written = jax.lax.platform_dependent(
        {i: x for i, x in enumerate(targets) if changed[i]},
        cpu=one_by_one,
        default=all_at_once,
    )
    return structure.unflatten(written.get(i, x) for i, x in enumerate(targets))
