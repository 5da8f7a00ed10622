r"""Outer optimizers: many local steps, then a step along what all workers have learnt.

Workers that are connected by slow links cannot average in every step. DiLoCo lets every
worker make :math:`H` steps by its own optimizer, and then treats the distance that the
workers have moved on average as a gradient, the outer gradient, for a second optimizer.
The anchor :math:`\varphi_i` is the model at which the worker started its local steps.
With any mechanism in the place of the exact average,

.. math::
   \Delta_i &= \varphi_i - \operatorname{average}_i(x_1, \dots, x_n), \\
   \varphi_i &\leftarrow \varphi_i + \operatorname{outer\ optimizer}(\Delta_i), \\
   x_i &\leftarrow \varphi_i.

Several published algorithms are of this form. With Nesterov momentum it is DiLoCo, with
heavy-ball momentum SlowMo and, over random pairs of workers, NoLoCo. With fragments of
the model that are averaged one after the other, and applied some steps after they were
sent, it is Streaming DiLoCo.

Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language Models
<https://arxiv.org/abs/2311.08105>`_, 2023; Douillard et al., `Streaming DiLoCo with
overlapping communication <https://arxiv.org/abs/2501.18512>`_, 2025; Wang et al.,
`SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum
<https://arxiv.org/abs/1910.00643>`_, 2020; Kolehmainen et al., `NoLoCo: No-all-reduce
Low Communication Training Method for Large Models <https://arxiv.org/abs/2506.10911>`_,
2025.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_choice, check_rate, check_static
from djax._arrays.checks import check_params, check_real
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation
from djax._values import check_integer

from ._anchors import AnchorDtype, Anchors, Memory
from ._fragments import Slots, check_fragments, number_leaves, pick, put
from ._outer_steps import FragmentState, OuterSteps

Fragments = int | PyTree | Callable[[PyTree], PyTree]


class OuterState(NamedTuple):
    """State of :func:`outer`.

    Attributes:
      step: `int32[]`, the number of updates so far.
      fragments: a :class:`FragmentState` for each fragment.
      sent: with `delay`, arrays that hold the fragment that is being averaged, as it
        was sent; `()` otherwise.
    """

    step: ArrayLike
    fragments: tuple[FragmentState, ...]
    sent: tuple[jax.Array, ...]


@by_its_call
def outer(
    period: int,
    optimizer: optax.GradientTransformation,
    mechanism: optax.GradientTransformation,
    *,
    fragments: Fragments = 1,
    delay: int = 0,
    blend: float | jax.Array = 1.0,
    anchor_dtype: AnchorDtype = None,
    anchor_memory: Memory = "device",
) -> Mechanism:
    r"""Averages rarely, and steps by an outer optimizer along what was learnt.

    Last in a chain, behind the optimizer of the local steps. After every `period`-th
    step,

    .. math::
       \Delta_i &= \varphi_i - \operatorname{average}_i(x_1, \dots, x_n), \\
       \varphi_i &\leftarrow \varphi_i + \operatorname{outer\ optimizer}(\Delta_i), \\
       x_i &\leftarrow \beta \varphi_i + (1 - \beta) x_i,

    with the anchor :math:`\varphi_i` and the blend :math:`\beta`. The optimizer in
    front acts in every step and keeps its own state, which is neither averaged nor
    reset. With `optax.sgd(1.0)` as outer optimizer, `outer` is :func:`djax.every`. With
    `optax.sgd(0.7, 0.9, nesterov=True)` over :func:`djax.all_reduce`, it is DiLoCo.

    With `fragments`, the model is cut into :math:`F` fragments, one of which is
    averaged every `period / F` steps, in turn: the network is used more evenly. With
    `delay`, a fragment is sent as it is after such a step, and the outer step is made
    that many local steps later. The workers need not wait for the messages meanwhile.
    A blend below 1 keeps a part of what the worker has learnt in these steps.

    **Compressed messages** bear less momentum of the outer optimizer than exact ones.
    What :func:`djax.power_gossip` or :func:`djax.choco_gossip` leave out changes from
    one averaging to the next, and a momentum adds it up: in our tests 0.5 was safe at a
    learning rate of 0.7, and 0.9 drove the models of the workers apart.

    **How messages travel during local steps.** mpi4jax has no non-blocking operations.
    Over MPI, a second thread of each rank therefore makes the exchange, on the CPU,
    while the program makes local steps; in the outer step the program waits if the
    result is not there yet. Until then the rank keeps copies, in the host's memory, of
    the fragment, of its anchor and of the mechanism's state. On a GPU these are copied
    from the device, and the results back to it. Some exchanges are made in the outer
    step itself: if MPI does not let two threads communicate (`MPI_THREAD_MULTIPLE`), if
    the mechanism uses a traced value besides its state and the models, such as an extra
    argument, or if `update` is called outside of `jax.jit`. In simulation nothing
    travels, and on a mesh XLA's collectives end within the step that starts them. All
    exchanges are made in the outer step there, and a delay saves no time.

    Args:
      period: the number of steps in which every fragment is averaged once.
      optimizer: the outer optimizer, such as `optax.sgd(0.7, 0.9, nesterov=True)`. It
        is given :math:`\Delta_i` in place of a gradient, and has a state for each
        fragment.
      mechanism: any mechanism without `overlap`, such as :func:`djax.all_reduce`,
        :func:`djax.gossip`, :func:`djax.relay` or :func:`djax.power_gossip`. It has a
        state for each fragment.
      fragments: their number, if the leaves are to be split in their order into
        fragments of about equal size; or a tree of numbers 0, 1, ... like the
        parameters, or a prefix of one, with the fragment of each leaf; or a function
        from the parameters to such a tree. Fragment 0 is the first to be averaged.
      delay: the number of local steps between sending a fragment and the outer step,
        less than `period / F`. Over MPI, the messages travel during these steps.
      blend: :math:`\beta`, the weight of the anchor in the new model, in (0, 1]. A
        float, or a scalar array. The Streaming DiLoCo paper calls :math:`1 - \beta` the
        mixing factor.
      anchor_dtype: `"bfloat16"` keeps the anchors in half of the memory. They are
        rounded at random, so that small outer steps are not lost.
      anchor_memory: `"host"` keeps the anchors and the states of the outer optimizer
        outside of the accelerator's memory between outer steps. A program of your own
        that donates this state has to donate the parameters as well, and to return both
        in the order of its arguments, as those of :mod:`djax.training` do. JAX 0.10
        may otherwise take memory of the host for that of the device, and abort.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with an :class:`OuterState`. A
      worker keeps a copy of the model, what the optimizer keeps and, with `delay`, the
      fragment that was sent. For the latter there are as many arrays of each shape as
      one fragment needs at most: if all fragments have leaves of the same shapes, they
      are as large as a fragment, and if all shapes differ as large as the model.

    Raises:
      TypeError: in `init`, if a parameter is complex and `anchor_dtype` is given.
      ValueError: if `period` is not a positive integer or, in `init`, not a multiple of
        the number of fragments; if `delay` is too long; if an argument is out of its
        range; if the mechanism overlaps, averages updates, weights models as
        :func:`djax.push_sum` does on directed graphs, is a correction that has to see
        every step, or an optimizer.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> nesterov = optax.sgd(0.7, momentum=0.9, nesterov=True)
      >>> diloco = djax.outer(500, nesterov, djax.all_reduce(workers))
      >>> optimizer = optax.chain(optax.adamw(4e-4), diloco)

    References:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language
      Models <https://arxiv.org/abs/2311.08105>`_, 2023, Algorithm 1

      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025, Algorithm 2
    """
    check_static("outer", period=period, delay=delay, fragments=fragments)
    period = check_integer(period, "outer: period")
    delay = check_integer(delay, "outer: delay", minimum=0)
    optimizer = as_transformation("outer", optimizer)
    mechanism = as_transformation("outer", mechanism)
    if isinstance(optimizer, Mechanism):
        refuse("outer: optimizer", parts_of(optimizer), "mechanism")
    refuse(
        "outer",
        parts_of(mechanism),
        *("optimizer", "every_step", "overlap", "averages_updates", "weighted"),
    )
    check_rate("outer: blend", blend)
    if not isinstance(blend, jax.core.Tracer) and blend > 1:
        raise ValueError(f"outer: blend must be at most 1, got {blend}.")
    check_choice("outer: anchor_dtype", anchor_dtype, AnchorDtype)
    check_choice("outer: anchor_memory", anchor_memory, Memory)
    known = check_fragments("outer", fragments)
    if known is not None:
        _check_times(period, known, delay)
    steps = OuterSteps(
        period, delay, blend, optimizer, mechanism, Anchors(anchor_dtype, anchor_memory)
    )

    def init(params):
        check_params("outer", params)
        if anchor_dtype is not None:
            check_real("outer with anchor_dtype", params)
        numbers = number_leaves("outer", fragments, params)
        count = max(numbers, default=0) + 1
        _check_times(period, count, delay)
        with around(f"outer({period}, {{}}, delay={delay}, fragments={numbers})"):
            states = tuple(steps.start(pick(params, numbers, f)) for f in range(count))
        sent = Slots(params, numbers).empty() if delay else ()
        return OuterState(jnp.zeros((), jnp.int32), states, sent)

    def update(updates, state, params=None, **extra):
        params = check_params("outer", params)
        check_state("outer", state, OuterState, params)
        numbers = number_leaves("outer", fragments, params)
        places = Slots(params, numbers).places
        if len(state.fragments) != len(places):
            raise ValueError(
                f"outer has {len(places)} fragments, but the state belongs to "
                f"{len(state.fragments)}: make a new state by its init."
            )
        states, sent = list(state.fragments), list(state.sent)
        for f, place in enumerate(places):
            part = pick(updates, numbers, f)
            mine = [sent[i] for i in place] if delay else []
            part, states[f], mine = steps.step(
                *(f, len(places), state.step, pick(params, numbers, f), extra),
                *(part, states[f], mine),
            )
            updates = put(updates, numbers, f, part)
            for i, array in zip(place, mine, strict=False):
                sent[i] = array
        step = optax.safe_increment(state.step)
        return updates, OuterState(step, tuple(states), tuple(sent))

    return wrap("outer", mechanism, init, update, {"optimizer": True})


def _check_times(period: int, fragments: int, delay: int) -> None:
    """Raises ValueError unless fragments are averaged at equal distances."""
    between, rest = divmod(period, fragments)
    if rest or not between:
        least = max(between, 1) * fragments
        raise ValueError(
            f"outer: period must be a multiple of the {fragments} fragments, got "
            f"{period}; the nearest are {least} and {least + fragments}."
        )
    if delay >= between:
        raise ValueError(
            f"outer: delay must be less than period / fragments = {between}, the "
            f"number of steps until the next fragment is sent; got {delay}."
        )
