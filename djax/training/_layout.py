"""Keeps the arrays of workers that have several devices laid out as the parameters are.

The compiler chooses the layout of what a program makes, such as the zeros with which an
optimizer starts, unless it is told. Left alone, it repeats them on each device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from djax._interfaces import Communicator, PyTree
from djax._mechanism.states import PerShardState


def layout_of(communicator: Communicator, tree: PyTree) -> PyTree:
    """Returns where each array of the workers lies, a tree of shardings.

    Arrays that do not lie on the communicator's mesh are moved to it, and are repeated
    on each device of their worker.
    """
    workers: Any = communicator.sharding
    names, devices = workers.mesh.axis_names, workers.mesh.devices

    def of_leaf(x):
        found = getattr(x, "sharding", None)
        if not isinstance(found, NamedSharding) or found.mesh.axis_names != names:
            return workers
        if found.mesh == workers.mesh:  # So it is in every step but the first.
            return found
        if not np.array_equal(found.mesh.devices, devices):
            return workers
        # The types of the axes may differ: those of the communicator are left to the
        # compiler.
        return NamedSharding(workers.mesh, found.spec)

    return jax.tree.map(of_leaf, tree)


def layout_of_state(
    communicator: Communicator, state: PyTree, params: PyTree
) -> PyTree:
    """Returns where to put the arrays of an optimizer's state, a tree of shardings.

    An array that belongs to a parameter lies as the parameter does. It belongs to the
    parameter whose path is the end of its own path, and whose shape is the end of its
    own shape, such as `[0].trace['kernel']` of momentum to `['kernel']`. If there is no
    such path, the shape alone decides. The states of :func:`djax.per_shard` are divided
    by their axis of shards. Other arrays are repeated on each device of their worker.

    Args:
      communicator: a communicator of a mesh.
      state: the state, or its shapes, `[size, ...]`.
      params: the parameters on the mesh, `[size, ...]`.
    """
    workers: Any = communicator.sharding
    axis, mesh = workers.spec[0], workers.mesh
    layouts = jax.tree.leaves(layout_of(communicator, params))
    known = [
        (path, x.shape[1:], layout.spec[1:])
        for (path, x), layout in zip(
            jax.tree.leaves_with_path(params), layouts, strict=True
        )
    ]

    def of_node(path, x):
        if isinstance(x, PerShardState):
            return of_shards(x)
        found = [each for each in known if path[len(path) - len(each[0]) :] == each[0]]
        longest = max((len(end) for end, *_ in found), default=0)
        found = [each for each in found if len(each[0]) == longest]
        specs = {
            (None,) * (x.ndim - len(shape) - 1) + tuple(spec)
            for _, shape, spec in found or known
            if shape and x.shape[1:][-len(shape) :] == shape
        }
        spec = specs.pop() if len(specs) == 1 else ()
        return NamedSharding(mesh, PartitionSpec(axis, *spec))

    def of_shards(state):
        specs = [
            PartitionSpec(axis, *([names] if names else []))
            for names in state.axes.names
        ]
        places = [
            jax.tree.map(lambda _, spec=spec: NamedSharding(mesh, spec), each)
            for each, spec in zip(state.states, specs, strict=True)
        ]
        return PerShardState(tuple(places), state.axes)

    def is_node(x):
        return isinstance(x, PerShardState)

    return jax.tree.map_with_path(of_node, state, is_leaf=is_node)


def compiled(communicator: Communicator, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `spmd(fn)` for workers that stay where they are.

    Args:
      communicator: where the workers live.
      fn: `(workers, *others) -> (workers, results)` for one worker.

    Returns:
      A function like `spmd(fn)` that reuses the memory of `workers`.
    """
    program, sharding = communicator.spmd(fn), communicator.sharding
    if sharding is None or sharding.num_devices == communicator.rows:
        return jax.jit(program, donate_argnums=0)

    @functools.lru_cache(maxsize=8)
    def for_layout(structure, layout):
        layout = structure.unflatten(layout)
        return jax.jit(program, donate_argnums=0, out_shardings=(layout, None))

    def run(workers, *others):
        leaves, structure = jax.tree.flatten(layout_of(communicator, workers))
        return for_layout(structure, tuple(leaves))(workers, *others)

    return run
