"""A communicator that wraps another one and loses some of its messages."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from djax._arguments import check_communicator
from djax._arrays.keys import threefry
from djax._interfaces import Communicator

from . import _common
from ._probabilities import Probability, probabilities

_BURSTS = 7  # Folded into the key: conditions and single messages are drawn separately.
_BEFORE = 2**32 - 1  # Stands for the time before the first step.


class GilbertElliott(NamedTuple):
    """Messages that are lost in bursts, as on real networks.

    In each step, a directed link is in a good or in a bad condition, which decides the
    probability with which it loses a message. Before each step the condition may change
    at random. A bad condition lasts `1 / to_good` steps on average. In the long run, a
    share of `to_bad / (to_bad + to_good)` of the steps is bad.

    Each probability is a number, or an array `[n, n]` whose entry `[i, j]` belongs to
    the link from worker `j` to worker `i`.

    Attributes:
      to_bad: probability with which a good link becomes bad.
      to_good: probability with which a bad link becomes good.
      drop_in_bad: probability with which a bad link loses a message.
      drop_in_good: probability with which a good link loses a message.

    Examples:
      >>> import djax
      >>> bursts = djax.communicators.GilbertElliott(to_bad=0.01, to_good=0.2)
      >>> simulated = djax.communicators.simulated(8)
      >>> lossy = djax.communicators.lossy(simulated, bursts)
      >>> round(lossy.drop_probability, 3)  # In the long run.
      0.048

    References:
      Gilbert, `Capacity of a burst-noise channel
      <https://doi.org/10.1002/j.1538-7305.1960.tb03959.x>`_, 1960

      Elliott, `Estimates of error rates for codes on burst-noise channels
      <https://doi.org/10.1002/j.1538-7305.1963.tb00955.x>`_, 1963
    """

    to_bad: npt.ArrayLike
    to_good: npt.ArrayLike
    drop_in_bad: npt.ArrayLike = 1.0
    drop_in_good: npt.ArrayLike = 0.0


def lossy(
    communicator: Communicator, model: npt.ArrayLike | GilbertElliott, *, seed: int = 0
) -> Communicator:
    """Makes a communicator that loses messages between neighbours.

    The two directions of an edge lose messages independently of each other. With the
    same seed the same messages are lost in simulation, on a mesh and over MPI. A
    worker's message to itself and all-reduces are never lost. The argument
    `drop_probability` of :func:`simulated`, :func:`mesh` and :func:`mpi` is a short
    form of this function.

    Args:
      communicator: a communicator that does not lose messages yet.
      model: says which messages are lost. A number in [0, 1) is the probability with
        which each message is lost. An array `[n, n]` has such a probability for each
        link: the entry `[i, j]` is for messages from worker `j` to worker `i`, and 1
        cuts the link. A :class:`GilbertElliott` loses messages in bursts.
      seed: seed of the random draws.

    Returns:
      A communicator that does everything else as the given one does.

    Raises:
      TypeError: if `communicator` is not a communicator.
      ValueError: if a probability is out of range, if an array has a wrong shape, or if
        the communicator loses messages already.

    Examples:
      >>> import djax, numpy as np
      >>> to_worker_0 = np.zeros((8, 8))
      >>> to_worker_0[0] = 0.5
      >>> simulated = djax.communicators.simulated(8)
      >>> djax.communicators.lossy(simulated, to_worker_0).drop_probability
      0.5
    """
    check_communicator("lossy", communicator)
    if communicator.drop_probability > 0:
        raise ValueError(
            f"lossy: {communicator!r} loses messages already; make it without "
            "drop_probability."
        )
    seed = _common.check_seed("lossy: seed", seed)
    size = communicator.size
    if isinstance(model, GilbertElliott):
        fields = {
            name: probabilities(f"lossy: {name}", value, size, most=1.0)
            for name, value in model._asdict().items()
        }
        model = GilbertElliott(**fields)
        if (np.asarray(model.to_bad) + np.asarray(model.to_good) > 1).any():
            raise ValueError(
                "lossy: to_bad + to_good must be at most 1, since the condition of a "
                f"link would else change in most steps; got {model}."
            )
    else:
        model = probabilities("lossy: drop_probability", model, size, most=None)
    return cast(Communicator, LossyCommunicator(communicator, _Drops(model, seed)))


def short_form(communicator: Any, drop_probability: float, drop_seed: int) -> Any:
    """Makes a communicator lose messages, unless the probability is 0."""
    if not drop_probability:
        return communicator
    return lossy(communicator, drop_probability, seed=drop_seed)


@dataclasses.dataclass(frozen=True, eq=False)
class _Drops:
    """Says which messages are lost, in a form that can be compared and hashed."""

    model: Any
    seed: int

    def _key(self) -> tuple[Any, ...]:
        fields = self.model if isinstance(self.model, tuple) else (self.model,)
        arrays = (np.asarray(x) for x in fields)
        return self.seed, *((x.shape, x.tobytes()) for x in arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Drops) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, repr=False)
class LossyCommunicator:
    """A communicator that loses some messages of the communicator that it wraps.

    Made by :func:`djax.communicators.lossy`. All other attributes and methods are those
    of the wrapped communicator.
    """

    communicator: Communicator
    drops: _Drops

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "communicator":  # While it is unpickled.
            raise AttributeError(name)
        return getattr(self.communicator, name)

    def __repr__(self) -> str:
        model = self.drops.model
        if isinstance(model, GilbertElliott):
            fields = (f"{k}={_shown(v)}" for k, v in model._asdict().items())
            shown = f"GilbertElliott({', '.join(fields)})"
        else:
            shown = _shown(model)
        return f"lossy({self.communicator!r}, {shown})"

    @property
    def drop_probability(self) -> float:
        """See :class:`djax.Communicator`."""
        model = self.drops.model
        if not isinstance(model, GilbertElliott):
            return float(np.max(model))
        changes = np.maximum(np.add(model.to_bad, model.to_good), 1e-30)
        bad = np.divide(model.to_bad, changes)
        lost = bad * model.drop_in_bad + (1 - bad) * np.asarray(model.drop_in_good)
        return float(np.max(lost))

    def arrived(
        self,
        source: Sequence[Any],
        key: jax.Array,
        *,
        step: ArrayLike | None = None,
        index: ArrayLike | None = None,
    ) -> jax.Array | bool:
        """See :class:`djax.Communicator`.

        A draw depends only on the key, the seed, the round and the receiver. Therefore
        the same messages are lost in simulation, on a mesh and over MPI.
        """
        if not self.drop_probability:
            return True
        senders, salt = _round(source, index)
        receiver, seed = self.communicator.rank(), self.drops.seed
        sender, model = senders[receiver], self.drops.model
        if isinstance(model, GilbertElliott):
            is_bad = self._is_bad(receiver, sender, step)
            probability = jnp.where(
                is_bad,
                _of_link(model.drop_in_bad, receiver, sender),
                _of_link(model.drop_in_good, receiver, sender),
            )
        else:
            probability = _of_link(model, receiver, sender)
        key = threefry(key)
        for data in (seed, salt, receiver):
            key = jax.random.fold_in(key, data)
        # With a probability in float64 other numbers would be drawn.
        kept = jax.random.bernoulli(key, jnp.asarray(1 - probability, jnp.float32))
        return kept | (sender == receiver)

    def _is_bad(self, receiver: Any, sender: Any, step: ArrayLike | None) -> jax.Array:
        """Whether a link is in the bad condition, found without a state.

        In each step one uniform number u is drawn for the link. If u < to_bad, the link
        becomes bad; if u >= 1 - to_good, it becomes good. In both cases it does not
        matter what the link was before. Otherwise the link keeps its condition. Its
        condition is therefore decided by the latest step in which u was in one of the
        first two ranges, and the loop looks back for that step.
        """
        if step is None:
            raise ValueError(
                "arrived: bursts of lost messages depend on the step: pass step=, the "
                "number of steps so far."
            )
        model = self.drops.model
        to_bad = _of_link(model.to_bad, receiver, sender)
        to_good = _of_link(model.to_good, receiver, sender)
        key = jax.random.key(self.drops.seed, impl="threefry2x32")
        for data in (_BURSTS, receiver, sender):
            key = jax.random.fold_in(key, data)

        def draw(now):
            return jax.random.uniform(jax.random.fold_in(key, now), (), jnp.float32)

        def stays(carry):
            now, u = carry
            changes = to_bad + to_good > 0
            return changes & (to_bad <= u) & (u < 1 - to_good) & (now > 0)

        def before(carry):
            now, _ = carry
            return now - 1, draw(now - 1)

        now = jnp.asarray(step, jnp.int32)
        now, u = jax.lax.while_loop(stays, before, (now, draw(now)))
        # If no step has changed the condition, the link still has its first condition.
        first = draw(_BEFORE)
        in_the_long_run = to_bad / jnp.maximum(to_bad + to_good, 1e-30)
        unchanged = (to_bad <= u) & (u < 1 - to_good)
        return jnp.where(unchanged, first < in_the_long_run, u < to_bad)


def _round(
    source: Sequence[Any], index: ArrayLike | None
) -> tuple[jax.Array, ArrayLike]:
    """The senders of a round, and a number that is different for different rounds."""
    table = np.asarray(source, np.int32)
    if index is None:
        return jnp.asarray(table), zlib.crc32(table.tobytes())
    salts = np.asarray([zlib.crc32(row.tobytes()) for row in table], np.uint32)
    return jnp.asarray(table)[index], jnp.asarray(salts)[index]


def _shown(probability: Probability) -> str:
    if np.ndim(probability) == 0:
        return repr(probability)
    return f"float64{list(probability.shape)}"


def _of_link(probability: Probability, receiver: Any, sender: Any) -> Any:
    if np.ndim(probability) == 0:
        return probability
    return jnp.asarray(probability)[receiver, sender]
