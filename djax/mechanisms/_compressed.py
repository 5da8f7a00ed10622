"""What CHOCO-Gossip, DeepSqueeze, DCD-PSGD, ECD-PSGD and BEER share.

All of them send one compressed tree to all neighbours in each step, and remember trees
like this one. They differ in what they send and in what they remember; the file of each
says that in one function. The checks, the state of the code, the count of the steps and
the message itself are the same for all of them, and are here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax import mixing
from djax._arguments import (
    check_consensus_rate,
    check_flags,
    check_mixing,
    check_reliable,
)
from djax._arrays.keys import is_key
from djax._arrays.precision import promote, scale
from djax._interfaces import Communicator, Compressor, PyTree
from djax._mechanism.adapter import build
from djax._mechanism.order import report_call
from djax._mechanism.states import check_state, label_of
from djax._mechanism.value import Mechanism
from djax.compressors.checks import check_class
from djax.mixing import difference
from djax.topologies import Graph

Send = Callable[[PyTree, Any], tuple[PyTree, PyTree, Any]]


class Messages:
    """The compressed messages of one mechanism, and what its state keeps for them."""

    def __init__(
        self,
        name: str,
        kind: Any,
        graph: Graph,
        communicator: Communicator,
        compressor: Compressor,
    ):
        """Raises an error unless the arguments fit each other.

        Args:
          name: the name of the mechanism, for errors.
          kind: the class of the mechanism's states. Its first fields are the trees that
            the mechanism remembers, which are like those that it sends. Then come
            `compressor_state` and `step`. The last field is `graph`, if the trees are
            sums over neighbours: the graph then must not change.
          graph: the graph and its weights.
          communicator: how messages travel; it must not lose any.
          compressor: the code C.
        """
        fixed = "graph" in kind._fields
        check_mixing(name, graph, communicator, fixed=fixed)
        check_reliable(name, communicator)
        self.name, self.graph, self.communicator = name, graph, communicator
        self.compressor, self._kind = compressor, kind
        self._remembered = kind._fields[: kind._fields.index("compressor_state")]
        self._label = {"graph": label_of(graph, weights=True)} if fixed else {}

    def mechanism(
        self,
        start: Callable[[PyTree], tuple[PyTree, ...]],
        facts: Mapping[str, bool | str | None],
        kind: str,
        **options: Any,
    ) -> Mechanism:
        """Makes the mechanism that sends these messages.

        Args:
          start: `params -> remembered`, the first fields of the first state.
          facts: see :func:`djax._mechanism.adapter.build`.
          kind: the class of codes that it needs, `contraction` or `unbiased`.
          **options: other arguments of :func:`djax._mechanism.adapter.build`.
        """

        def init(params):
            return self.state(start(params), params)

        return build(
            self.name,
            init,
            self.communicator,
            self.graph,
            facts=facts,
            conditions={kind: self.compressor},
            skips_silent_steps=True,
            **options,
        )

    def state(
        self, remembered: Sequence[PyTree], sent: PyTree, **others: PyTree
    ) -> Any:
        """Makes the first state.

        Args:
          remembered: the first fields of the state.
          sent: a tree like those that are sent.
          **others: the other fields, besides those of this class.
        """
        code = jax.tree.map(self._own_key, self.compressor.init(sent))
        step = jnp.zeros((), jnp.int32)
        return self._kind(*remembered, code, step, **others, **self._label)

    def _own_key(self, leaf: Any) -> Any:
        """Makes a PRNG key the worker's own, and returns anything else as it is."""
        rank = self.communicator.rank()
        return jax.random.fold_in(leaf, rank) if is_key(leaf) else leaf

    def check(self, state: Any, sent: PyTree) -> None:
        """Raises unless the state belongs to this mechanism, and to trees like one."""
        known = {"label": self._label.get("graph"), "compressor": self.compressor}
        trees = self._remembered
        check_state(self.name, state, self._kind, sent, *trees, **known)

    def send(self, tree: PyTree, state: Any) -> tuple[PyTree, PyTree, Any]:
        r"""Sends a tree to all neighbours, compressed.

        Args:
          tree: what worker i sends, :math:`z_i`.
          state: the mechanism's state.

        Returns:
          :math:`C(z_i)` in the dtypes of `tree`;
          :math:`\sum_j w_{ij} (C(z_j) - C(z_i))` in float32 or wider; and the state
          with the `compressor_state` and the `step` that come after this message.
        """
        code, step = self.compressor, state.step
        message, compressor_state = code.compress(tree, state.compressor_state)
        own = code.decompress(mixing.as_sent(message, self.communicator, step), tree)

        def read(theirs, mine):
            del mine  # It has been decompressed already.
            return difference(code.decompress(theirs, tree), own)

        heard = mixing.weighted_sum(
            message, read, self.graph, self.communicator, values=own, step=step
        )
        next_step = optax.safe_increment(step)
        state = state._replace(
            compressor_state=compressor_state, step=next_step, **self._label
        )
        return own, heard.total, state


def averaging_by_a_contraction(
    messages: Messages,
    start: Callable[[PyTree], tuple[PyTree, ...]],
    mix: Callable[[PyTree, Any, Send], tuple[PyTree, Any]],
    consensus_rate: float,
    overlap: bool,
) -> Mechanism:
    """Makes a mechanism that moves models only a part of the way to the average.

    The consensus rate is that part. If it is small enough, the code may be coarse.

    Args:
      messages: the messages of the mechanism.
      start: `params -> remembered`, the first fields of the mechanism's first state.
      mix: `(model, state, send) -> (displacement, state)`. The displacement is that of
        the consensus rate 1, and `send` is :meth:`Messages.send`.
      consensus_rate: the factor by which the displacement is multiplied.
      overlap: whether the parameters are averaged before this step's updates.
    """
    name = messages.name
    check_class(name, messages.compressor, "contraction")
    check_consensus_rate(f"{name}: consensus_rate", consensus_rate, messages.graph)
    check_flags(name, overlap=overlap)

    def at_rate(model, state, /):
        messages.check(state, model)
        displacement, state = mix(model, state, messages.send)
        return scale(consensus_rate, displacement), state

    facts = {"needs_every_message": True, "compresses": True}
    return messages.mechanism(start, facts, "contraction", mix=at_rate, overlap=overlap)


def averaging_by_an_unbiased_code(
    messages: Messages,
    start: Callable[[PyTree], tuple[PyTree, ...]],
    step: Callable[[PyTree, PyTree, Any, Send], tuple[PyTree, Any]],
) -> Mechanism:
    """Makes a mechanism that averages what neighbours know of each other's models.

    Args:
      messages: the messages of the mechanism.
      start: `params -> remembered`, the first fields of the mechanism's first state.
      step: `(params, updates, state, send) -> (params, state)`. The new parameters are
        in float32 or wider, and `send` is :meth:`Messages.send`.
    """
    check_class(messages.name, messages.compressor, "unbiased")

    def update(updates, state, params, /):
        messages.check(state, params)
        target, state = step(params, updates, state, messages.send)
        moved = jax.tree.map(
            lambda t, x, u: (t - promote(x)).astype(u.dtype), target, params, updates
        )
        report_call(updates, moved, params, optax.tree.cast_like(target, params))
        return moved, state

    facts = {
        "needs_every_message": True,
        "compresses": True,
        # The models that neighbours know are those before this step's updates.
        "overlap": f"{messages.name} averages older ones; use gossip",
        "moves_mean": True,  # What the code leaves out moves the mean.
    }
    return messages.mechanism(start, facts, "unbiased", update=update)


def accumulate(total: PyTree, change: PyTree) -> PyTree:
    """Adds to a sum that is kept in float32 or wider."""
    return jax.tree.map(lambda t, c: t + promote(c), total, change)


def follow(state: Any, own: PyTree, change: PyTree) -> Any:
    """Updates the public copy, and the displacement towards the neighbours' copies.

    Args:
      state: a state with the fields `estimate` and `displacement`.
      own: what this worker has sent, as it was sent. It is added to the worker's copy.
      change: the weighted sum of the differences between what the neighbours have sent
        and what this worker has sent.
    """
    return state._replace(
        estimate=accumulate(state.estimate, own),
        displacement=accumulate(state.displacement, change),
    )


def zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, in float32 or wider."""
    return jax.tree.map(lambda x: jnp.zeros_like(promote(x)), params)


def copies(params: PyTree) -> PyTree:
    """The parameters in float32 or wider, in arrays of their own."""
    return jax.tree.map(lambda x: jnp.array(promote(x), copy=True), params)


def first_exchange(messages: Messages, params: PyTree) -> tuple[PyTree, PyTree]:
    r"""Sends the models that the workers start from to all neighbours, uncompressed.

    Returns:
      The worker's own model as it was sent, and :math:`\sum_j w_{ij} (x_j - x_i)`. Both
      are in float32 or wider and in arrays of their own.
    """
    heard = mixing.weighted_sum(
        params, difference, messages.graph, messages.communicator, step=0
    )
    return copies(heard.own), heard.total
