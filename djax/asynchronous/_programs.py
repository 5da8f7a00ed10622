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
      ends: `int32[2 * averagings]`, pairs of workers, one behind the other.
      since: `float[2 * averagings]`, the time since the previous event of each.
      averaging: `int32[]`, how many ends there are.
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
    ends = np.stack([events.worker[averagings], events.peer[averagings]], -1)
    ends = np.where(averagings[..., None] < 0, events.size, ends)
    flat = (len(averagings), 2 * averagings.shape[1])
    empty = gradients < 0
    steps = (np.cumsum(events.is_gradient) - 1)[gradients]
    first = steps[~empty].min(initial=np.iinfo(np.int32).max)
    wave = Wave(
        ends=ends.reshape(flat),
        since=events.elapsed[averagings].reshape(flat),
        averaging=2 * (averagings >= 0).sum(1),
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
            measured = _put(measured, wave.slots, wave.computing, results[2])
        return run, measured

    measured = ()
    if waves.workers.size:
        one = jax.tree.map(lambda x: x[0], waves)
        compute = functools.partial(_compute, gradient_fn)
        like = jax.eval_shape(compute, run, one, batches)[2]
        total = len(jax.tree.leaves(batches)[0])
        measured = jax.tree.map(
            lambda x: jnp.zeros((total, *x.shape[1:]), x.dtype), like
        )
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
    return run, _stack([measured[slot] for slot in sorted(measured)])


@functools.partial(jax.jit, static_argnums=0)
def _one_gradient(gradient_fn, run: Run, i, batches: PyTree, slot):
    params, model_state = jax.tree.map(lambda x: x[i], (run.started, run.model_state))
    batch = jax.tree.map(lambda x: x[slot], batches)
    return gradient_fn(params, model_state, batch)


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees) if trees else ()


def _average(algorithm, run: Run, wave: Wave) -> Run:
    """Pairs of workers exchange their models."""
    if not wave.ends.size:
        return run
    everyone = run.params, run.state
    before = _rows(everyone, wave.ends)
    params, state = jax.vmap(algorithm.mix)(*before, wave.since)
    peers = jax.tree.map(_swap, params)
    updates, state = jax.vmap(algorithm.average)(peers, state, params)
    after = optax.apply_updates(params, updates), state
    params, state = _put(everyone, wave.ends, wave.averaging, after, before)
    return run._replace(params=params, state=state)


def _swap(rows: jax.Array) -> jax.Array:
    """Gives each end what the other one has."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


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
    return _put(run, wave.workers, wave.computing, after)


_average_alone = jax.jit(_average, static_argnums=0, donate_argnums=1)
_apply_alone = jax.jit(_apply, static_argnums=0, donate_argnums=1)


def _rows(tree: PyTree, index: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), tree)


def _put(
    tree: PyTree, index: jax.Array, count: jax.Array, rows: PyTree, before: PyTree = ()
) -> PyTree:
    """Writes the first `count` rows, but for leaves that are the ones from `before`."""
    targets, structure = jax.tree.flatten(tree)
    known = {id(leaf) for leaf in jax.tree.leaves(before)}
    changed = {
        i: new for i, new in enumerate(jax.tree.leaves(rows)) if id(new) not in known
    }

    def write(k, targets):
        return {
            i: jax.lax.dynamic_update_index_in_dim(x, changed[i][k], index[k], 0)
            for i, x in targets.items()
        }

    def one_by_one(targets):
        return jax.lax.fori_loop(0, count, write, targets)

    def all_at_once(targets):
        return {i: x.at[index].set(changed[i], mode="drop") for i, x in targets.items()}

    # On CPUs XLA's scatter takes several times as long as a loop over its rows.
    written = jax.lax.platform_dependent(
        {i: targets[i] for i in changed}, cpu=one_by_one, default=all_at_once
    )
    return structure.unflatten(written.get(i, x) for i, x in enumerate(targets))
