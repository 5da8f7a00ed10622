"""Puts the arrays of workers where the workers are, and reads them back."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from djax._arguments import check_communicator
from djax._arrays.checks import check_arrays, check_leading_axis, named_leaves
from djax._arrays.keys import is_key
from djax._interfaces import Communicator, PyTree


def replicate(communicator: Communicator, tree: PyTree, specs: Any = None) -> PyTree:
    """Gives every local worker the same arrays.

    Args:
      communicator: the communicator of the workers.
      tree: the arrays of one worker.
      specs: how the arrays of a worker are divided among its devices, if it has
        several: a `jax.sharding.PartitionSpec` for all arrays, or a tree of them like
        `tree` or a prefix of it. By default, arrays that lie on a mesh already keep
        their layout along the axes that the communicator's mesh has, too, and others
        are repeated on each device. Communicators whose workers have one device each
        ignore it.

    Returns:
      A tree whose leaves have a leading axis of local workers, as programs that
      :meth:`djax.Communicator.spmd` makes take it. For a mesh, the leaves have all
      workers, and each row lies on the devices of its worker.

    Raises:
      TypeError: if `communicator` is not a communicator, or a leaf of the tree is not
        an array.
      ValueError: if `specs` does not fit the tree or the mesh.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(3)
      >>> djax.communicators.replicate(communicator, jnp.zeros(2)).shape
      (3, 2)
    """
    check_communicator("replicate", communicator)
    check_arrays("replicate", tree)
    sharding = communicator.sharding
    if sharding is None:
        return _stacked(None)(tree, len(communicator.local_ranks))
    shardings, structure = _shardings("replicate", sharding, tree, specs, 0)
    leaves = _stacked(tuple(shardings))(jax.tree.leaves(tree), communicator.rows)
    return structure.unflatten(leaves)


@functools.lru_cache(maxsize=8)
def _stacked(shardings: Any) -> Callable[[PyTree, int], PyTree]:
    """Makes a function that repeats all arrays of a tree, in one program."""

    def stack(tree, count):
        return jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(x), (count, *np.shape(x))), tree
        )

    layout = None if shardings is None else list(shardings)
    return jax.jit(stack, static_argnums=1, out_shardings=layout)


def from_local(communicator: Communicator, tree: PyTree, specs: Any = None) -> PyTree:
    """Gives each local worker arrays of its own.

    On a mesh whose devices belong to several processes, the programs of workers take
    global arrays, of which each process has a part. Every process has to call this
    function. Elsewhere the result is the tree itself, as arrays of JAX.

    Args:
      communicator: the communicator of the workers.
      tree: arrays `[local workers, ...]`, a row for each of `communicator.local_ranks`.
        Global arrays are returned as they are.
      specs: see :func:`replicate`; `PartitionSpec(None, "fsdp")` divides the second
        axis of a worker's arrays among the worker's devices.

    Returns:
      A tree of arrays as programs that :meth:`djax.Communicator.spmd` makes take them.

    Raises:
      TypeError: if `communicator` is not a communicator, or a leaf is not an array.
      ValueError: if a leaf has no leading axis of local workers, or `specs` does not
        fit the tree or the mesh.

    Examples:
      >>> import djax, numpy as np
      >>> communicator = djax.communicators.simulated(3)
      >>> djax.communicators.from_local(communicator, np.arange(3))
      Array([0, 1, 2], dtype=int32)
    """
    check_communicator("from_local", communicator)
    return placed("from_local", communicator, tree, specs)


def placed(
    name: str,
    communicator: Communicator,
    tree: PyTree,
    specs: Any = None,
    *,
    what: Any = "tree",
) -> PyTree:
    """Does what :func:`from_local` says, in the name of another function.

    Args:
      name: the name of that function, for errors.
      communicator: see :func:`from_local`.
      tree: see :func:`from_local`.
      specs: see :func:`from_local`.
      what: that function's name of the tree, for errors.
    """
    check_arrays(name, tree)
    local = jax.tree.map(lambda x: None if _is_global(x) else x, tree)
    check_leading_axis(name, (), len(communicator.local_ranks), {what: local})
    sharding = communicator.sharding
    if sharding is None:
        return jax.tree.map(jnp.asarray, tree)
    shardings, structure = _shardings(name, sharding, tree, specs, 1)
    ranks, size = list(communicator.local_ranks), communicator.rows

    def globally(x, sharding):
        if _is_global(x):
            return x
        if len(ranks) == size:
            return jax.device_put(x, sharding)
        if is_key(x):
            data = globally(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        rows = np.asarray(x)

        def part(index):
            first, *rest = index
            mine = [ranks.index(rank) for rank in range(size)[first]]
            return rows[(mine, *rest)] if not rest else rows[mine][(slice(None), *rest)]

        shape = (size, *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    leaves = jax.tree.leaves(tree)
    return structure.unflatten(map(globally, leaves, shardings))


def _is_global(x: Any) -> bool:
    """Whether other processes have parts of an array."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def to_local(communicator: Communicator, tree: PyTree) -> PyTree:
    """Copies the rows of local workers to the host's memory.

    If the devices of one worker belong to several processes, these processes have to
    call this function together.

    Args:
      communicator: the communicator of the workers.
      tree: arrays as programs that :meth:`djax.Communicator.spmd` makes return them.

    Returns:
      A tree of NumPy arrays `[local workers, ...]`. Random keys become their key data.

    Raises:
      TypeError: if `communicator` is not a communicator.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(3)
      >>> djax.communicators.to_local(communicator, jnp.arange(3))
      array([0, 1, 2], dtype=int32)
    """
    check_communicator("to_local", communicator)
    ranks, sharding = list(communicator.local_ranks), communicator.sharding
    gathers = sharding is not None and _shared_by_processes(sharding)

    def locally(x):
        if is_key(x):
            x = jax.random.key_data(x)
        if not _is_global(x):
            return np.asarray(x)
        if gathers and not x.sharding.is_equivalent_to(sharding, x.ndim):
            x = jax.jit(lambda y: y, out_shardings=sharding)(x)
        rows: dict[int, np.ndarray] = {}
        for shard in x.addressable_shards:
            first, *rest = shard.index
            for i, rank in enumerate(range(x.shape[0])[first]):
                row = rows.setdefault(rank, np.empty(x.shape[1:], x.dtype))
                row[tuple(rest)] = shard.data[i]
        return np.stack([rows[rank] for rank in ranks])

    return jax.tree.map(locally, tree)


def _shardings(
    name: str, workers: NamedSharding, tree: PyTree, specs: Any, skip: int
) -> tuple[list[NamedSharding], Any]:
    """Returns the global layout of each leaf, and the structure of the tree.

    Args:
      name: the function that the user called, for errors.
      workers: the `sharding` of a communicator.
      tree: the arrays.
      specs: as in :func:`replicate`.
      skip: number of leading axes of the arrays that are axes of workers.
    """
    leaves, structure = jax.tree.flatten(tree)
    mesh, axis = workers.mesh, workers.spec[0]
    if specs is None or mesh.axis_names == (axis,):
        found = [_spec_of(x, mesh, axis, skip) for x in leaves]
    else:
        found = [tuple(spec)[skip:] for spec in specs_of(name, specs, tree)]
    shardings = []
    for (path, x), spec in zip(named_leaves(tree), found, strict=True):
        try:
            sharding = NamedSharding(mesh, PartitionSpec(axis, *spec))
            sharding.shard_shape((mesh.shape[axis], *np.shape(x)[skip:]))
        except ValueError as error:
            raise ValueError(
                f"{name}: the spec {spec} does not fit {path or 'the array'} of shape "
                f"{np.shape(x)[skip:]} on the mesh {dict(mesh.shape)}: {error}"
            ) from None
        shardings.append(sharding)
    return shardings, structure


def specs_of(name: str, specs: Any, tree: PyTree) -> list[PartitionSpec]:
    """Returns the spec of each leaf of a tree.

    Args:
      name: the function that the user called, for errors.
      specs: a spec, or a tree of specs like the tree of arrays or a prefix of it.
      tree: the arrays.
    """

    def is_spec(x):
        return isinstance(x, PartitionSpec)

    try:
        whole = jax.tree.broadcast(specs, tree, is_leaf=is_spec)
    except ValueError as error:
        raise ValueError(
            f"{name}: specs must be a PartitionSpec, or a tree of them like that of "
            f"the arrays or a prefix of it: {error}"
        ) from None
    found = jax.tree.leaves(whole, is_leaf=is_spec)
    for spec in found:
        if not is_spec(spec):
            raise TypeError(f"{name}: specs must be PartitionSpecs, got {spec!r}.")
    return found


def _spec_of(x: Any, mesh: Any, axis: str, skip: int) -> tuple:
    """Returns the layout that an array has already, as far as the mesh has its axes."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return ()
    others = set(mesh.axis_names) - {axis}

    def kept(entry):
        names = entry if isinstance(entry, tuple) else (entry,)
        return entry if set(names) <= others else None

    return tuple(map(kept, sharding.spec[skip:]))


def _shared_by_processes(sharding: NamedSharding) -> bool:
    """Whether the devices of one worker belong to several processes."""
    processes = collections.defaultdict(set)
    size = sharding.mesh.shape[sharding.spec[0]]
    for device, ranks in sharding.devices_indices_map((size,)).items():
        processes[str(ranks)].add(device.process_index)
    return any(len(each) > 1 for each in processes.values())
