"""What every part of djax shares: the communicator's interface and its checks."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ._arrays import check_arrays
from ._calls import ByItsCall
from .topologies import Schedule, Topology
from .topologies._checks import describe, is_communicator
from .topologies._kinds import check_undirected
from .topologies._schedule_checks import contraction

PyTree = Any


class OutsideError(RuntimeError):
    """A verb was called outside of the per-worker program."""


class Communicator(Protocol):
    """How the workers of one run exchange arrays.

    The verbs up to `arrived` are called from *inside* the per-worker program, on one
    worker's arrays; `spmd` makes a program of all workers out of it; `gather` is the
    hosts' own exchange, between programs.

    Attributes:
      size: number of workers.
      name: of these workers, by which :func:`djax.communication_cost` counts.
      local_ranks: ranks of the workers that live in this process, ascending: all of
        them in simulation, one under MPI.
      rows: length of the leading axis of the arrays that programs made by `spmd` take
        and return in this process: the number of local workers, or, where arrays are
        global as on a mesh, of all workers.
      shares_device: whether all workers live on one device, so that a program may also
        compute worker by worker.
      sharding: how arrays with a leading axis of all workers lie on the devices, where
        they are global; else None.
      message_dtype: name of the dtype to which :mod:`djax.mixing` rounds floats that
        travel between neighbours; None leaves them as they are.
      rounding_seed: seed of stochastic rounding; None rounds to the nearest number.
      drop_probability: probability with which a message between neighbours is lost, 0
        if nothing is; in the long run, and the largest one where links differ.
    """

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    @property
    def name(self) -> str:
        """Of these workers."""
        ...

    @property
    def local_ranks(self) -> Sequence[int]:
        """Ranks of the workers that live in this process, ascending."""
        ...

    @property
    def rows(self) -> int:
        """Length of the leading axis of the arrays of this process."""
        ...

    @property
    def shares_device(self) -> bool:
        """Whether all workers live on one device."""
        ...

    @property
    def sharding(self) -> jax.sharding.Sharding | None:
        """How global arrays lie on the devices."""
        ...

    @property
    def message_dtype(self) -> str | None:
        """Name of the dtype in which floats travel between neighbours."""
        ...

    @property
    def rounding_seed(self) -> int | None:
        """Seed of stochastic rounding."""
        ...

    @property
    def drop_probability(self) -> float:
        """Probability with which a message between neighbours is lost."""
        ...

    def rank(self) -> jax.Array | int:
        """This worker's index: a tracer in simulation, an `int` under MPI."""
        ...

    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """Returns what worker `source[rank]` passed.

        Args:
          tree: this worker's arrays, of the same shapes and dtypes on every worker.
          source: a permutation of `range(size)`, the same on every worker; a worker
            with `source[rank] == rank` stays silent and gets its own tree back.
        """
        ...

    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """Returns what `permute(tree, sources[index])` returns.

        Graphs that change with time exchange by another permutation in each step. In
        simulation any number of permutations costs no more than one; elsewhere equal
        ones share a branch, and a rank of MPI needs one for each pair of partners.

        Args:
          tree: this worker's arrays, as in `permute`.
          sources: permutations of `range(size)`, the same on every worker.
          index: `int32[]`, the same on every worker.
        """
        ...

    def mean(self, tree: PyTree) -> PyTree:
        """Exact average over all workers (an all-reduce), in the leaves' dtypes.

        An all-reduce adds up on the way. Sums of 16-bit floats are accumulated, and
        travel, as float32, whatever the `message_dtype` is.
        """
        ...

    def broadcast(self, tree: PyTree) -> PyTree:
        """Returns worker 0's tree, bit for bit."""
        ...

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """Tells JAX that `value` is equal on all workers.

        Under `vmap` the result has no worker axis, so that `lax.switch` on it runs only
        the selected branch; otherwise JAX would compute every branch and select
        afterwards.
        """
        ...

    def arrived(
        self,
        source: Sequence[Any],
        key: jax.Array,
        *,
        step: ArrayLike | None = None,
        index: ArrayLike | None = None,
    ) -> jax.Array | bool:
        """Whether the message of the round `source` came through to this worker.

        Always `True` unless messages get lost: see :func:`djax.communicators.lossy`.

        Args:
          source: the permutation, as given to `permute`; with `index` the permutations,
            as given to `permute_one_of`.
          key: a PRNG key that is new in every step; workers and rounds may share it.
          step: `int32[]`, number of steps so far, on which bursts of lost messages
            depend.
          index: `int32[]`, which permutation it is.
        """
        ...

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Lifts a per-worker `fn` to arrays with a leading axis of local workers."""
        ...

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Collects one Python object a worker, in the order of ranks, on every host.

        Args:
          values: one object for each of `local_ranks`.
        """
        ...

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """Raises on every process unless all of them start a mechanism alike.

        At once, or when the program that is being traced runs.

        Args:
          name: of the mechanism.
          facts: by name, values that can be compared, pickled and shown.
          after: arrays of the program that have to be there before.

        Raises:
          ValueError: names what differs, and on which ranks.
        """
        ...


class _Functions(NamedTuple):
    """The fields of a :class:`Compressor`."""

    init: Callable[[PyTree], PyTree]
    compress: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    decompress: Callable[[PyTree, PyTree], PyTree]
    contraction: bool | None = None
    unbiased: bool | None = None


class Compressor(ByItsCall, _Functions):
    """A lossy code for trees of arrays: three pure functions, and what they promise.

    Each mechanism needs a code of one class (see :mod:`djax.compressors`) and diverges,
    or loses what is left out, with one of the other: a code that says of itself that it
    is not of the class in question is refused.

    Attributes:
      init: `params -> state`, what the sender remembers. Typed PRNG keys in it become
        each worker's own.
      compress: `(tree, state) -> (message, state)`; the message is a tree of the arrays
        that really travel.
      decompress: `(message, like) -> tree`, with the shapes and dtypes of `like`. It
        needs no state: whoever receives the message can read it.
      contraction: whether it is one; None if unknown, which every mechanism accepts.
      unbiased: whether its expectation is what was compressed; None if unknown.
    """


def check_communicator(name: str, communicator: Any) -> None:
    """Raises TypeError unless it can be used as a communicator."""
    if not is_communicator(communicator) or isinstance(communicator, type):
        raise TypeError(
            f"{name} needs a communicator such as djax.communicators.simulated(8), got "
            f"{describe(communicator)}."
        )


def check_sizes(name: str, topology: Any, communicator: Communicator) -> None:
    """Raises ValueError if the graph and the communicator differ in size."""
    check_communicator(name, communicator)
    if topology.size != communicator.size:
        raise ValueError(
            f"{name}: the graph {topology!r} has {topology.size} workers but the "
            f"communicator has {communicator.size}; build both for the same number."
        )


def check_topology(name: str, topology: Any, communicator: Communicator) -> None:
    """Raises unless it is an undirected graph of the communicator's workers."""
    check_undirected(name, topology)
    check_sizes(name, topology, communicator)


def check_reliable(name: str, communicator: Communicator) -> None:
    """Raises ValueError if the communicator loses messages."""
    if (probability := getattr(communicator, "drop_probability", 0.0)) > 0:
        raise ValueError(
            f"{name} needs every message, but the communicator loses "
            f"{probability:.3g} of them: make it without drop_probability, or use "
            "gossip, relay or push_sum."
        )


def as_transformation(
    name: str, transformation: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer or mechanism that takes extra arguments.

    Args:
      name: who was given it, for the error.
      transformation: of optax, or two functions of the same names.

    Raises:
      TypeError: if it is asynchronous, or no such thing.
    """
    if is_asynchronous(transformation):
        raise TypeError(asynchronous_text(name))
    if not all(callable(getattr(transformation, f, None)) for f in ("init", "update")):
        raise TypeError(
            f"{name} needs an optimizer or a mechanism, such as optax.sgd(0.1) or "
            f"djax.gossip(topology, communicator), got {transformation!r}."
        )
    return optax.with_extra_args_support(transformation)


def is_asynchronous(transformation: Any) -> bool:
    """Whether its workers average at events, as those of :func:`djax.acid` do."""
    return callable(getattr(transformation, "average", None))


def asynchronous_text(name: str) -> str:
    """What to say where an asynchronous algorithm is taken for a synchronous one."""
    return (
        f"{name}: djax.acid and djax.adpsgd are asynchronous. Their updates average "
        "nothing: workers meet at events. Run them by djax.asynchronous.simulate or "
        "djax.asynchronous.run; in synchronous steps use djax.gossip(topology, "
        "communicator)."
    )


_IN_LOCKSTEP: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "djax_in_lockstep", default=False
)


@contextlib.contextmanager
def lockstep() -> Iterator[None]:
    """Marks the trace of a program in which all workers make the same steps."""
    token = _IN_LOCKSTEP.set(True)
    try:
        yield
    finally:
        _IN_LOCKSTEP.reset(token)


def check_not_in_lockstep(name: str) -> None:
    """Raises TypeError inside of :func:`lockstep`.

    Only there is an asynchronous algorithm's update known to be a mistake, however
    deep it is in a chain of optax.
    """
    if _IN_LOCKSTEP.get():
        raise TypeError(asynchronous_text(name))


def check_flag(name: str, value: Any) -> bool:
    """Returns the value, or raises ValueError unless it is True or False."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}.")


def check_flags(name: str, **values: Any) -> None:
    """Raises ValueError unless all values are True or False.

    Args:
      name: of the mechanism, for the error.
      **values: its arguments.
    """
    for key, value in values.items():
        check_flag(f"{name}: {key}", value)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises ValueError unless the value is one of those of a `Literal`."""
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")


def check_rate(name: str, rate: Any, *, zero: bool = False) -> None:
    """Raises ValueError unless a step size is one real number in the right range.

    Traced values, which `optax.inject_hyperparams` and `jax.jit` pass, have only their
    shape and dtype checked.

    Args:
      name: of the mechanism and the argument, for the error.
      rate: a number, or an array of shape `()`.
      zero: whether the rate may be 0.
    """
    is_array = isinstance(rate, (jax.Array, np.ndarray, np.generic))
    number = jnp.result_type(rate) if is_array else np.dtype(type(rate))
    real = jnp.issubdtype(number, jnp.floating) or jnp.issubdtype(number, jnp.integer)
    if not (real and (is_array or isinstance(rate, (int, float)))):
        raise ValueError(
            f"{name} must be a number, got {rate!r}; a schedule goes through "
            "optax.inject_hyperparams."
        )
    if np.shape(rate) != ():
        raise ValueError(
            f"{name} must be one number for all parameters, got an array of shape "
            f"{np.shape(rate)}; give groups of parameters rates of their own by "
            "optax.masked."
        )
    if isinstance(rate, jax.core.Tracer):
        return
    if not (0 < float(rate) < float("inf") or (zero and float(rate) == 0)):
        least = "at least 0" if zero else "positive"
        raise ValueError(f"{name} must be {least} and finite, got {rate}.")


def check_decay(name: str, decay: Any) -> None:
    """Raises ValueError unless it is a number from 0 to below 1, or a traced one."""
    check_rate(name, decay, zero=True)
    if not isinstance(decay, jax.core.Tracer) and float(decay) >= 1:
        raise ValueError(f"{name} must be below 1, got {decay}.")


def check_consensus_rate(name: str, rate: Any, graph: Topology | Schedule) -> None:
    r"""Raises ValueError if models that are averaged at this rate never become equal.

    On a fixed graph that is where :math:`1 - \rho (1 - \lambda_{min}) \le -1`: the
    differences between the workers then swap their signs in each step, and do not
    shrink. Traced rates, which `optax.inject_hyperparams` passes, cannot be checked.

    Args:
      name: of the mechanism and the argument, for the error.
      rate: :math:`\rho`, a number, or an array of shape `()`.
      graph: the graph and its weights.
    """
    check_rate(name, rate)
    if isinstance(rate, jax.core.Tracer) or float(rate) <= 1 or graph.size == 1:
        return  # Weights by which a rate of 1 is too large are refused themselves.
    if isinstance(graph, Schedule):
        own = np.eye(graph.size)
        matrices = (1 - float(rate)) * own + float(rate) * graph.matrices
        if contraction(matrices) < 1:
            return
        limit = "at most 1"
    else:
        largest = 2 / (1 - graph.lambda_min)
        if float(rate) <= largest * (1 - 1e-6):
            return
        limit = f"below {largest:.4g}"
    raise ValueError(
        f"{name} must be {limit} on {graph!r}, got {rate}: the workers' models would "
        "never become equal."
    )


def check_params(
    name: str,
    params: PyTree,
    remedy: str = "keep it out of the parameters or wrap the mechanism in optax.masked",
) -> PyTree:
    """Returns the parameters, or raises if there are none that can be averaged.

    Args:
      name: of the mechanism, for errors.
      params: the parameters.
      remedy: what to do about an array that is not of floats, for errors.

    Raises:
      ValueError: if there are no parameters.
      TypeError: if a leaf is not of floats.
    """
    if params is None:
        raise ValueError(
            f"{name} averages parameters: call update(updates, state, params)."
        )
    check_averageable(name, params, f"; {remedy}")
    return params


def check_averageable(name: str, tree: PyTree, remedy: str = "") -> None:
    """Raises TypeError, naming the leaf, unless all leaves are arrays of floats."""
    check_arrays(name, tree, what="params")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name} averages floating-point arrays, but params"
                f"{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}{remedy}."
            )


def check_static(name: str, **values: Any) -> None:
    """Raises ValueError if a number that shapes the program is a JAX array.

    Args:
      name: of the mechanism, for the error.
      **values: all its arguments that have to be known when programs are compiled.
    """
    for key, value in values.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name}: {key} must be an integer that is known before programs are "
                f"compiled, got {value!r}; use optax.inject_hyperparams({name}, "
                f"static_args={tuple(values)!r})."
            )


def check_real(name: str, params: PyTree) -> None:
    """Raises TypeError if a parameter is complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"{name} is for real arrays, but params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}."
            )


def check_key(name: str, key: Any) -> None:
    """Raises TypeError unless it is None or one PRNG key, typed or of raw numbers.

    Args:
      name: who takes the key, for errors.
      key: what the user passed.
    """
    if key is None:
        return
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        raw = key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
        if key.ndim == 0 if typed else raw:
            return
    raise TypeError(
        f"{name}: key must be a single PRNG key such as jax.random.key(0), got {key!r}."
    )


def shared_key(name: str, key: jax.Array | None) -> jax.Array:
    """The key of draws that several workers have to make alike.

    Args:
      name: of the mechanism or code, for errors.
      key: the user's, typed or not, or None for one of the seed 0.

    Returns:
      A typed key whose draws do not depend on `vmap`.

    Raises:
      TypeError: if it is no key, for example a plain seed.
      ValueError: if the draws of this kind of key do.
    """
    check_key(name, key)
    if key is None:
        return jax.random.key(0, impl="threefry2x32")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        impl = "threefry2x32" if key.shape == (2,) else "rbg"
        key = jax.random.wrap_key_data(key, impl=impl)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"{name}: draws of the key {key} differ between workers under vmap; make "
            'it by jax.random.key(seed, impl="threefry2x32").'
        )
    return key


def key_of_step(key: jax.Array | None, step: ArrayLike) -> jax.Array:
    """The PRNG key of one step's message losses; of the seed 0 by default."""
    key = jax.random.key(0, impl="threefry2x32") if key is None else threefry(key)
    return jax.random.fold_in(key, step)


def threefry(key: jax.Array) -> jax.Array:
    """A key whose draws do not depend on `vmap`, made of one of any kind.

    Args:
      key: typed or not. Of other kinds than Threefry's the data are folded into one
        of the seed 0.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == (2,):
            return jax.random.wrap_key_data(key, impl="threefry2x32")
    elif "threefry" in str(jax.random.key_impl(key)):
        return key
    else:
        key = jax.random.key_data(key)
    folded = jax.random.key(0, impl="threefry2x32")
    for word in key:
        folded = jax.random.fold_in(folded, word)
    return folded


def add(x: PyTree, y: PyTree, like: PyTree, sign: int = 1) -> PyTree:
    """Returns `x + sign * y`, summed in float32 or wider, in the dtypes of `like`."""
    return jax.tree.map(
        lambda a, b, c: (wide(a) + sign * wide(b)).astype(jnp.result_type(c)),
        x,
        y,
        like,
    )


def wide(x: jax.Array) -> jax.Array:
    """`x` in a dtype that keeps the precision of sums: at least float32."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        raise TypeError(f"only floats can be averaged, got {jnp.result_type(x)}.")
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
