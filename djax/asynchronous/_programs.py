"""Waves of events as compiled programs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._base import PyTree

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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def looped(algorithm, gradient_fn, run: Run, waves: Wave, batches: PyTree, count):
    """All waves in one program."""

    def body(w, carry):
        run, measured = carry
        wave = jax.tree.map(lambda x: x[w], waves)
        run = _average(algorithm, run, wave)
        if wave.workers.size:
            results = _compute(gradient_fn, run, wave, batches)
            run = _apply(algorithm, run, wave, results)
            measured = _put(measured, wave.computing, (wave.slots, results[2], None))
        return run, measured

    measured = ()
    if waves.workers.size:
        measured = _no_metrics(gradient_fn, run, batches)
    return jax.lax.fori_loop(0, count, body, (run, measured))


def dispatched(algorithm, gradient_fn, run: Run, waves: Wave, batches, count):
    """A program for each gradient, and two for everything else of a wave."""
    measured = {}
    for w in range(count):
        wave = jax.tree.map(lambda x, w=w: x[w], waves)
        run = _average_alone(algorithm, run, wave)
        if real := int(wave.computing):
            results = [
                _one_gradient(gradient_fn, run, i, batches, slot)
                for i, slot in zip(wave.workers[:real], wave.slots, strict=False)
            ]
            measured |= zip(wave.slots, (r[2] for r in results), strict=False)
            results += results[-1:] * (len(wave.workers) - real)
            run = _apply_alone(algorithm, run, wave, _stack(results))
    if measured:
        return run, _stack([measured[slot] for slot in sorted(measured)])
    computes = waves.workers.shape[1] > 0
    return run, _no_metrics(gradient_fn, run, batches) if computes else ()


def _no_metrics(gradient_fn, run: Run, batches: PyTree) -> PyTree:
    """Zeros for the metrics of all gradients of a stretch."""
    one = functools.partial(_one_gradient, gradient_fn)
    like = jax.eval_shape(one, run, 0, batches, 0)[2]
    total = len(jax.tree.leaves(batches)[0])
    return jax.tree.map(lambda x: jnp.zeros((total, *x.shape), x.dtype), like)


@functools.partial(jax.jit, static_argnums=0)
def _one_gradient(gradient_fn, run: Run, i, batches: PyTree, slot):
    params, model_state = jax.tree.map(lambda x: x[i], (run.started, run.model_state))
    batch = jax.tree.map(lambda x: x[slot], batches)
    return gradient_fn(params, model_state, batch)


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _average(algorithm, run: Run, wave: Wave) -> Run:
    """Pairs of workers exchange their models."""
    if not wave.ends.size:
        return run
    everyone = run.params, run.state
    before = [_rows(everyone, ends) for ends in wave.ends]
    mixed = [
        jax.vmap(algorithm.mix)(*rows, since)
        for rows, since in zip(before, wave.since, strict=True)
    ]
    writes = []
    for k in (0, 1):
        (params, state), (peer, _) = mixed[k], mixed[1 - k]
        updates, state = jax.vmap(algorithm.average)(peer, state, params)
        after = optax.apply_updates(params, updates), state
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


def _apply(algorithm, run: Run, wave: Wave, results) -> Run:
    """Gradients are due, and the next ones start."""
    grads, model_state, _ = results

    def step(before, grads, elapsed, count):
        params, state = before
        updates, state = algorithm.update(
            grads, state, params, elapsed=elapsed, global_step=count
        )
        return optax.apply_updates(params, updates), state

    before = _rows((run.params, run.state), wave.workers)
    params, state = jax.vmap(step)(before, grads, wave.elapsed, wave.steps)
    after = Run(params, state, params, model_state)
    return _put(run, wave.computing, (wave.workers, after, None))


_average_alone = jax.jit(_average, static_argnums=0, donate_argnums=1)
_apply_alone = jax.jit(_apply, static_argnums=0, donate_argnums=1)


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
