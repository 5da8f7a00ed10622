"""The communicator of workers that have devices of their own, on an axis of a mesh."""

import dataclasses
import functools
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from djax._arrays.checks import check_averageable, check_leading_axis
from djax._arrays.divided import dividing
from djax._arrays.keys import is_key
from djax._arrays.precision import promote
from djax._interfaces import PyTree
from djax._mechanism.agreement import differences
from djax._transformations import lockstep
from djax.transport import gather_objects

from . import _common
from ._axis import AxisCommunicator, verb_of_axis


@dataclasses.dataclass(frozen=True, repr=False)
class MeshCommunicator(AxisCommunicator):
    """Workers that have devices of their own, along an axis of `shard_map`.

    Made by :func:`djax.communicators.mesh`. The arguments and results of `spmd` are
    global arrays, which lie on the devices of all workers.

    If the mesh has other axes than that of the workers, a worker is the part of the
    mesh along these axes. Only the axis of the workers is manual in the programs that
    `spmd` makes. How a worker's arrays are divided among the worker's devices is left
    to the compiler, which follows the layout of the arguments.

    Attributes:
      mesh: the mesh of all devices.
    """

    mesh: Mesh = dataclasses.field(kw_only=True)

    maker: ClassVar[str] = "mesh"
    shares_device: ClassVar[bool] = False

    def __repr__(self) -> str:
        if not self.has_large_workers or self.level is not None:
            return super().__repr__()
        shape = ", ".join(f"{name}: {n}" for name, n in self.mesh.shape.items())
        return f"{super().__repr__()[:-1]}, mesh=({shape}))"

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices of all workers, in the order of ranks."""
        return tuple(self._devices_by_worker.ravel())

    @property
    def _devices_by_worker(self) -> np.ndarray:
        """The devices, `[size, devices of a worker]`."""
        axis = self.mesh.axis_names.index(self.axis_name)
        return np.moveaxis(self.mesh.devices, axis, 0).reshape(self.rows, -1)

    @property
    def has_large_workers(self) -> bool:
        """Whether a worker has several devices."""
        return self.mesh.size > self.rows

    @property
    def local_ranks(self) -> Sequence[int]:
        """Ranks of the workers that have a device in this process."""
        return self._ranks_in(jax.process_index())

    def _ranks_in(self, process: int) -> list[int]:
        by_worker = self._devices_by_worker
        return [
            rank
            for rank, devices in enumerate(by_worker)
            if any(device.process_index == process for device in devices)
        ]

    @property
    def sharding(self) -> NamedSharding:
        """The layout of arrays with a leading axis of all workers.

        The arrays of a worker are repeated on each device of the worker.
        """
        return NamedSharding(self.mesh, PartitionSpec(self.axis_name))

    @verb_of_axis
    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """See :class:`djax.Communicator`."""
        distinct, which = _common.distinct(
            _common.check_permutations(sources, self.size)
        )
        branches = [functools.partial(self.permute, source=s) for s in distinct]
        return jax.lax.switch(jnp.asarray(which)[index], branches, tree)

    @verb_of_axis
    def mean(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        check_averageable("mean", tree)
        if self.size == 1:  # XLA refuses a sum of one if other axes are not manual.
            return jax.tree.map(jnp.asarray, tree)

        def mean(x):
            total = jax.lax.psum(promote(x), self.axis_name, **self._circles)
            return (total / self.size).astype(jnp.result_type(x))

        return jax.tree.map(mean, tree)

    @property
    def _circles(self) -> dict[str, Any]:
        """Which workers JAX's collectives connect, if not all."""
        circles = None if self.level is None else self.level.circles
        return {"axis_index_groups": circles}

    @verb_of_axis
    def broadcast(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        if self.size == 1:
            return jax.tree.map(jnp.asarray, tree)

        # A sum in which all other workers' terms are zero needs no memory for the
        # arrays of all workers.
        def first(bits):
            mine = jnp.where(self.rank() == 0, bits, jnp.zeros_like(bits))
            return jax.lax.psum(mine, self.axis_name, **self._circles)

        return jax.tree.map(functools.partial(_as_bits, first), tree)

    @verb_of_axis
    def all_gather(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""

        def everyones(bits):
            return jax.lax.all_gather(bits, self.axis_name, **self._circles)

        return jax.tree.map(functools.partial(_as_bits, everyones), tree)

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """See :class:`djax.Communicator`."""
        return value

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See :class:`djax.Communicator`."""
        _common.check_function(fn)

        def one_worker(args, kwargs):
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            with dividing(self.has_large_workers):
                results = fn(*args, **kwargs)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], results)

        program = jax.shard_map(
            one_worker,
            mesh=self.mesh,
            in_specs=PartitionSpec(self.axis_name),
            out_specs=PartitionSpec(self.axis_name),
            axis_names={self.axis_name},
            check_vma=False,
        )
        if self.has_large_workers:  # What is left to the compiler needs a compiler.
            program = jax.jit(program)

        @functools.wraps(fn)
        def all_workers(*args, **kwargs):
            check_leading_axis("spmd", args, self.rows, kwargs)
            with lockstep():
                return program(args, kwargs)

        return all_workers

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """See :class:`djax.Communicator`.

        The value of a worker whose devices belong to several processes is that of the
        first of these processes.
        """
        values = _common.check_one_each("gather", values, len(self.local_ranks))
        found: dict[int, Any] = {}
        everyones = gather_from_processes(self, values)
        for process, theirs in zip(_processes_of(self), everyones, strict=True):
            found = dict(zip(self._ranks_in(process), theirs, strict=True)) | found
        return [found[rank] for rank in range(self.rows)]

    def hosts(self) -> list[tuple[str, str]]:
        """The name of the host of each worker's first device.

        All processes with devices of the mesh have to call this function together.
        """
        name = socket.gethostname()
        return [(host, host) for host in self.gather([name] * len(self.local_ranks))]

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """See :class:`djax.Communicator`; processes compare when they trace `init`."""
        everyones = gather_objects(_processes_of(self), facts, f"init of {name}")
        _common.check_same_starts(differences(everyones))


def gather_from_processes(communicator: Any, value: Any) -> list[Any]:
    """Collects a Python object from each process that has workers.

    Args:
      communicator: where the workers live. All of their processes have to call.
      value: this process's object.
    """
    if getattr(communicator, "sharding", None) is None:
        local = len(communicator.local_ranks)
        return communicator.gather([value] * local)[::local]
    return gather_objects(_processes_of(communicator), value)


def _processes_of(communicator: Any) -> list[int]:
    return sorted({d.process_index for d in communicator.sharding.device_set})


def make_mesh(
    size: int,
    devices: Sequence[jax.Device] | None,
    mesh: Mesh | None,
    axis_name: str,
) -> Mesh:
    """Makes the mesh of a communicator, or raises ValueError if that cannot be.

    Args:
      size: number of workers.
      devices: one device a worker, or more; by default all devices.
      mesh: the user's mesh in place of devices.
      axis_name: the axis of the workers.
    """
    if mesh is None:
        found = tuple(jax.devices() if devices is None else devices)
        if len(found) < size:
            raise ValueError(
                f"a mesh of {size} workers needs {size} devices, but there are "
                f"{len(found)}. On a CPU, set XLA_FLAGS="
                f"--xla_force_host_platform_device_count={size} before starting "
                "Python, or use communicators.simulated."
            )
        return Mesh(found[:size], (axis_name,), axis_types=(AxisType.Auto,))
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh: mesh must be a jax.sharding.Mesh, got {type(mesh)}; make one by "
            f'jax.make_mesh(({size}, 2), ("{axis_name}", "fsdp")).'
        )
    if devices is not None:
        raise ValueError(
            "mesh: the devices are those of the mesh; leave out devices= or mesh=."
        )
    if mesh.shape.get(axis_name) != size:
        raise ValueError(
            f"mesh: the {size} workers need an axis {axis_name!r} of length {size}, "
            f"but the mesh has {dict(mesh.shape)}; pass axis_name= to name the axis of "
            "the workers."
        )
    # Users make meshes whose axes are explicit, the default of jax.make_mesh. Layouts
    # within a worker are the compiler's.
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def _as_bits(exchange: Callable[[jax.Array], jax.Array], x: Any) -> jax.Array:
    """Exchanges an array as integers, which keep every bit, those of NaNs, too.

    Args:
      exchange: takes an array of integers, and may return it with more leading axes.
      x: an array of any dtype, or of typed PRNG keys.
    """
    if is_key(x):
        data = _as_bits(exchange, jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = jnp.asarray(x)
    return _from_integers(exchange(_as_integers(x)), x.dtype)


def _as_integers(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as unsigned integers that can be added."""
    if jnp.issubdtype(x.dtype, jnp.bool_):
        return x.astype(jnp.uint8)
    if jnp.iscomplexobj(x):
        return _as_integers(jnp.stack([x.real, x.imag], axis=-1))
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _from_integers(bits: jax.Array, dtype: Any) -> jax.Array:
    """Undoes :func:`_as_integers`."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return bits.astype(bool)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        both = _from_integers(bits, jnp.finfo(dtype).dtype)
        return jax.lax.complex(both[..., 0], both[..., 1])
    if jnp.issubdtype(dtype, jnp.integer):
        return bits
    return jax.lax.bitcast_convert_type(bits, dtype)
