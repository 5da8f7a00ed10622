"""A mechanism for each part of parameters that are divided among several devices."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from djax._arrays.checks import check_arrays, check_params, named_leaves
from djax._arrays.divided import dividing
from djax._arrays.keys import is_key
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._layout import specs_of
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.states import PerShardState, ShardAxes, check_state
from djax._mechanism.value import Mechanism
from djax._transformations import as_transformation

Names = tuple[tuple[str, ...], ...]
"""For each axis of an array, the axes of the mesh along which it is divided."""


@by_its_call
def per_shard(
    mechanism: optax.GradientTransformation,
    specs: Any,
    axes: Mapping[str, int] | None = None,
) -> Mechanism:
    """Lets a mechanism treat each part of divided parameters as parameters of its own.

    On a mesh with workers of several devices, the parameters of a worker are divided
    among its devices. Most mechanisms, such as :func:`djax.gossip` and
    :func:`djax.power_gossip`, need not know that. Others number the entries of a
    parameter one after another, for example to find the largest ones, and would need
    the whole parameter on each device. This wrapper gives each device its own part
    instead, and nothing is gathered.

    What a code does then changes in meaning: :func:`djax.compressors.top_k` sends the
    largest entries of each part, in place of the largest ones of the whole parameter,
    :func:`djax.compressors.sign` has a scale for each part, and codes of low rank have
    that rank in each part. A worker sends the messages of all of its parts, and
    :func:`djax.communication_cost` counts all of them.

    Codes and mechanisms that draw random numbers from a `key` of their own draw the
    same ones in all parts of a worker.

    Parameters that are divided along the same axes of the mesh are averaged together,
    and those that are not divided by themselves. In simulation, and over MPI, the parts
    are treated one after another, with the same numbers.

    Args:
      mechanism: any mechanism, or an optimizer that contains one, such as
        :func:`djax.beer`.
      specs: how the parameters of one worker are divided: a
        `jax.sharding.PartitionSpec` for all of them, or a tree of them like the
        parameters or a prefix of it.
      axes: number of a worker's devices along each axis, such as `{"fsdp": 2}`; by
        default that of the communicator's mesh. It is needed in simulation.

    Returns:
      A :class:`djax.Mechanism` with a :class:`PerShardState`.

    Raises:
      TypeError: if `mechanism` is not a mechanism, or `specs` has other leaves than
        PartitionSpecs.
      ValueError: if `specs` has an axis that is not in `axes`, or `axes` are not those
        of the communicator's mesh; in `init`, if `specs` does not fit the parameters.

    Examples:
      >>> import djax
      >>> from jax.sharding import PartitionSpec
      >>> communicator = djax.communicators.simulated(4)
      >>> code = djax.compressors.top_k(0.1)
      >>> mechanism = djax.per_shard(
      ...     djax.choco_gossip(djax.topologies.ring(4), communicator, code, 0.1),
      ...     {"w": PartitionSpec("fsdp"), "b": PartitionSpec()},
      ...     axes={"fsdp": 2},
      ... )
    """
    mechanism = as_transformation("per_shard", mechanism)
    communicator = getattr(mechanism, "communicator", None)
    if axes is not None or communicator is not None:
        _check_specs(specs, _axes_of(communicator, axes))

    def init(params):
        check_params("per_shard", params)
        groups = _groups_of(params, specs, _axes_of(communicator, axes))
        leaves, states = jax.tree.leaves(params), []

        def start(number, parts, _):
            (mine,) = parts
            state = mechanism.init(mine)
            return jax.tree.map(lambda x: _own(x, number), state), mine

        for group in groups:
            with around("per_shard({})"):
                own = [leaves[i] for i in group.members]
                state, _ = group.run(start, (own,), None)
            states.append(state)
        return PerShardState(tuple(states), ShardAxes(tuple(g.axes for g in groups)))

    def update(updates, state, params=None, **extra_args):
        check_state("per_shard", state, PerShardState, params)
        groups = _groups_of(updates, specs, _axes_of(communicator, axes))
        if state.axes.names != tuple(group.axes for group in groups):
            raise ValueError(
                "per_shard: the state belongs to other specs: make a new state by its "
                "init."
            )
        leaves, treedef = jax.tree.flatten(updates)
        models = None if params is None else treedef.flatten_up_to(params)
        states = []

        def step(_, parts, before):
            some, model = parts
            some, after = mechanism.update(some, before, model, **extra_args)
            return after, some

        for group, before in zip(groups, state.states, strict=True):
            own = [leaves[i] for i in group.members]
            model = None if models is None else [models[i] for i in group.members]
            after, moved = group.run(step, (own, model), before)
            states.append(after)
            for i, x in zip(group.members, moved, strict=True):
                leaves[i] = x
        return treedef.unflatten(leaves), PerShardState(tuple(states), state.axes)

    return wrap("per_shard", mechanism, init, update)


@dataclasses.dataclass(frozen=True)
class _Group:
    """The parameters that are divided along the same axes of the mesh.

    Attributes:
      axes: names of these axes.
      counts: the number of devices along each.
      members: positions of the parameters among the leaves.
      names: how each of them is divided.
    """

    axes: tuple[str, ...]
    counts: tuple[int, ...]
    members: tuple[int, ...]
    names: tuple[Names, ...]

    def run(self, fn: Callable[..., Any], trees: tuple, state: Any) -> tuple[Any, Any]:
        """Calls `fn(number, parts, state) -> (state, parts)` for each shard.

        Args:
          fn: what is done in a shard, whose number is given.
          trees: lists of arrays like the members, or None in place of a list.
          state: a tree of arrays `[shards, ...]`, or None.
        """
        if not self.axes:
            with dividing(False):
                return fn(None, trees, state)
        there = jax.sharding.get_abstract_mesh().shape
        run = self._on_devices if set(self.axes) <= set(there) else self._in_turn
        return run(fn, trees, state)

    def _on_devices(self, fn: Callable[..., Any], trees: Any, state: Any) -> Any:
        """Lets each device of a worker do the work for its own shard."""
        members = [PartitionSpec(*names) for names in self.names]
        each = tuple(tree and members for tree in trees)
        shards = PartitionSpec(self.axes)

        def one(trees, state):
            number = jax.lax.axis_index(self.axes)
            state = jax.tree.map(lambda x: x[0], state)
            with dividing(False):
                state, found = fn(number, trees, state)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], state), found

        return jax.shard_map(
            one,
            in_specs=(each, shards),
            out_specs=(shards, members),
            axis_names=set(self.axes),
            check_vma=False,
        )(trees, state)

    def _in_turn(self, fn: Callable[..., Any], trees: Any, state: Any) -> Any:
        """Does the work for one shard after another, all on the same device."""
        cut = [tree and [*map(self._cut, tree, self.names)] for tree in trees]
        found = []
        for number in range(math.prod(self.counts)):
            mine = tuple(tree and [x[number] for x in tree] for tree in cut)
            before = jax.tree.map(lambda x, i=number: x[i], state)
            found.append(fn(number, mine, before))
        states, parts = zip(*found, strict=True)
        state = jax.tree.map(lambda *each: jnp.stack(each), *states)
        whole = [
            self._joined(jnp.stack(shards), names)
            for *shards, names in zip(*parts, self.names, strict=True)
        ]
        return state, whole

    def _order(self, names: Names) -> list[int]:
        """The axes of an array that :meth:`_cut` has reshaped, shards first."""
        flat = [*itertools.chain(*((*each, None) for each in names))]
        rest = [i for i, name in enumerate(flat) if name is None]
        return [flat.index(name) for name in self.axes] + rest

    def _cut(self, x: jax.Array, names: Names) -> jax.Array:
        """Reshapes an array to its shards, `[shards, ...]`."""
        count = dict(zip(self.axes, self.counts, strict=True))
        shape, block = [], []
        for length, each in zip(x.shape, names, strict=True):
            parts = [count[name] for name in each]
            block.append(length // math.prod(parts))
            shape += [*parts, block[-1]]
        return x.reshape(shape).transpose(self._order(names)).reshape(-1, *block)

    def _joined(self, shards: jax.Array, names: Names) -> jax.Array:
        """Undoes :meth:`_cut`."""
        count = dict(zip(self.axes, self.counts, strict=True))
        x = shards.reshape(*self.counts, *shards.shape[1:])
        x = x.transpose(np.argsort(self._order(names)))
        return x.reshape(
            [
                length * math.prod(count[name] for name in each)
                for length, each in zip(shards.shape[1:], names, strict=True)
            ]
        )


def _own(x: jax.Array, number: Any) -> jax.Array:
    """Makes a random key of a state that of one shard, and returns others as given."""
    return jax.random.fold_in(x, number) if is_key(x) and number is not None else x


def _axes_of(communicator: Any, axes: Mapping[str, int] | None) -> dict[str, int]:
    """Returns the axes of a worker, or raises ValueError unless the mesh has them.

    Some optimizers do not say what their communicator is. The mesh for which a program
    is traced then has the axes.
    """
    sharding = getattr(communicator, "sharding", None)
    if sharding is not None:
        own = dict(sharding.mesh.shape)
        own.pop(sharding.spec[0])
    else:
        mesh = jax.sharding.get_abstract_mesh()
        own = {name: mesh.shape[name] for name in mesh.auto_axes}
    if own and axes is not None and dict(axes) != own:
        raise ValueError(
            f"per_shard: axes are {dict(axes)}, but the workers of the mesh have {own}."
        )
    return own if axes is None else dict(axes)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _check_specs(specs: Any, axes: Mapping[str, int]) -> None:
    """Raises unless all specs are PartitionSpecs along the axes of a worker."""
    for spec in jax.tree.leaves(specs, is_leaf=_is_spec):
        if not _is_spec(spec):
            raise TypeError(
                f"per_shard: specs must be jax.sharding.PartitionSpecs, got {spec!r}."
            )
        if unknown := set(itertools.chain(*_names(spec, len(spec)))) - set(axes):
            raise ValueError(
                f"per_shard: {spec} divides along {sorted(unknown)}, but the axes of a "
                f"worker are {dict(axes)}; in simulation pass axes=, such as "
                'axes={"fsdp": 2}.'
            )


def _names(spec: PartitionSpec, ndim: int) -> Names:
    """Writes a spec with a tuple of names for each axis of an array."""
    entries = [*spec, *[None] * (ndim - len(spec))]
    return tuple(
        () if e is None else tuple(e) if isinstance(e, tuple) else (e,) for e in entries
    )


def _groups_of(tree: PyTree, specs: Any, axes: Mapping[str, int]) -> list[_Group]:
    """Sorts the leaves of a tree by the axes along which they are divided."""
    check_arrays("per_shard", tree)
    found: dict[tuple[str, ...], list[tuple[int, Names]]] = {}
    flat = specs_of("per_shard", specs, tree)
    for i, ((path, x), spec) in enumerate(zip(named_leaves(tree), flat, strict=True)):
        names = _names(spec, jnp.ndim(x))
        parts = [math.prod(axes[name] for name in each) for each in names]
        fits = len(names) == jnp.ndim(x)
        if not fits or any(n % p for n, p in zip(jnp.shape(x), parts, strict=True)):
            raise ValueError(
                f"per_shard: {spec} does not divide params{path} of shape "
                f"{jnp.shape(x)} evenly along {dict(axes)}."
            )
        used = {*itertools.chain(*names)}
        along = tuple(name for name in axes if name in used)
        found.setdefault(along, []).append((i, names))
    groups = []
    for along, members in sorted(found.items()):
        positions, names = zip(*members, strict=True)
        counts = tuple(axes[name] for name in along)
        groups.append(_Group(along, counts, positions, names))
    return groups
