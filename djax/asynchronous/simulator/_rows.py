"""Reads and writes rows of arrays that have a leading axis of workers."""

import jax
import jax.numpy as jnp

from djax._interfaces import PyTree


def copies(tree: PyTree) -> PyTree:
    """Copies all arrays, so that a program may overwrite the originals."""
    return jax.tree.map(jnp.copy, tree)


def stack(trees: list[PyTree]) -> PyTree:
    """Joins trees of one structure along a new leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def take(tree: PyTree, index: jax.Array) -> PyTree:
    """Returns the rows with these indices; indices out of range are clipped."""
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), tree)


def put(tree: PyTree, count: jax.Array, *writes: tuple) -> PyTree:
    """Writes rows into arrays, and returns the new arrays.

    Args:
      tree: the arrays.
      count: number of rows that are written, from the first row of `index` on.
      *writes: triples `(index, rows, before)`: the indices of the rows, the new rows,
        and the old rows or None. If a leaf of `rows` is the same object as that of
        `before`, it is not written.
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
