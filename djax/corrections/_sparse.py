r"""Sparse averaging: in each step only a few coordinates of the model are averaged.

Models that are trained from one start, on data that are alike, stay close to each other
for many steps. SPARTA makes use of that: in each step it averages a small random part
of the coordinates, which is the same part on all workers, and leaves all others as the
local step made them. A worker sends the fraction p of what the mechanism would send for
the whole model, and every coordinate is averaged once in about 1/p steps.

Beton et al., `Improving the Efficiency of Distributed Training using Sparse Parameter
Averaging <https://openreview.net/forum?id=stFPf3gzq1>`_, 2025.
"""

import contextlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_choice, check_static
from djax._arrays.checks import check_params, named_leaves
from djax._arrays.divided import check_not_divided
from djax._arrays.keys import shared_key
from djax._arrays.matrices import dealing_out, is_matrix
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around, check_same
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, collecting, parts_of
from djax._transformations import as_transformation
from djax._values import check_share
from djax.topologies import contraction

from ._coordinates import LARGEST_SIZE, Selection, select


class SparseState(NamedTuple):
    """State of :func:`sparse`.

    Attributes:
      step: `int32[]`, the number of updates so far, from which the coordinates are
        derived.
      mechanism_state: the state of the wrapped mechanism.
    """

    step: ArrayLike
    mechanism_state: optax.OptState


@by_its_call
def sparse(
    mechanism: optax.GradientTransformation,
    fraction: float,
    *,
    selection: Selection = "random",
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages in each step some of the coordinates only, the same on all workers.

    Last in a chain, behind the optimizer of the local steps. With the updates
    :math:`u_i` and the set :math:`S_t` of the coordinates of step t,

    .. math::
       (x_i)_{S_t} &\leftarrow \operatorname{average}_i\bigl((x_1 + u_1)_{S_t}, \dots,
         (x_n + u_n)_{S_t}\bigr) \\
       (x_i)_c &\leftarrow (x_i + u_i)_c \qquad \text{for all other coordinates } c.

    The optimizer's state is not averaged. All workers derive :math:`S_t` from the key
    and the number of the step, so that it need not be sent. For each leaf of d
    coordinates, with the number of parts :math:`P = \lceil 1 / p \rceil`, it depends on
    `selection`:

    * `"random"`: each coordinate independently with probability p, anew in each step;
    * `"shuffled"`: the coordinates are put into a random order once, which is cut into
      P parts. The parts take turns, so that each coordinate is averaged in every P-th
      step;
    * `"partitioned"`: as `"shuffled"`, but a new order is drawn whenever all parts had
      their turn. A leaf of less than P coordinates has d parts.

    Indices are not sent. What travels for each leaf is a vector in the dtype of the
    leaf, which has the same length in every step. With `"shuffled"` and `"partitioned"`
    the length is :math:`\lceil d / P \rceil`. With `"random"` the number of selected
    coordinates varies, and the vector has room for more than :math:`p d` of them: for
    the smallest number that is exceeded with a probability below :math:`10^{-9}`, about
    :math:`p d + 6 \sqrt{p d}`. For a million coordinates and p = 0.005 these are 5429
    numbers. The room that is not used travels as zeros. Coordinates for which there is
    no room, the last ones of the leaf, are left out on all workers.

    No draw is as long as the parameters, and nothing is sorted or stored: a step draws
    and reads about as many numbers as it sends.

    Every coordinate meets the mechanism in other steps. The mechanism may therefore
    keep nothing that belongs to a coordinate, such as a neighbour's last model.

    Args:
      mechanism: :func:`djax.gossip`, also with `overlap`, :func:`djax.all_reduce`,
        :func:`djax.push_sum` on a graph whose matrices are doubly stochastic, or
        another mechanism without a state for each coordinate; also within
        :func:`djax.every`, :func:`djax.only` or :func:`djax.interleave`.
      fraction: p, the share of the coordinates that is averaged in a step, in (0, 1].
      selection: how the coordinates are chosen.
      key: PRNG key of the coordinates, the same on every worker; `jax.random.key(0)`
        by default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`SparseState`.

    Raises:
      ValueError: if `fraction` is not in (0, 1]; if `selection` is unknown; if the
        mechanism is an optimizer, or within a wrapper of optax, or weights its models,
        as :func:`djax.push_sum` does on directed graphs; if with `"shuffled"` some
        coordinates would always meet the same matrices of a schedule, and never the
        others; in `init`, if the mechanism keeps a state for each coordinate, or
        compresses matrices.

    Examples:
      >>> import djax, jax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> averaging = djax.sparse(djax.all_reduce(workers), 0.005)
      >>> sparta = optax.chain(optax.adamw(1e-3), averaging)
      >>> weights = jax.ShapeDtypeStruct((1000, 1000), "float32")
      >>> djax.communication_cost(averaging, weights, workers).mean_bytes
      21716

    References:
      Beton et al., `Improving the Efficiency of Distributed Training using Sparse
      Parameter Averaging <https://openreview.net/forum?id=stFPf3gzq1>`_, 2025
    """
    check_static("sparse", fraction=fraction)
    fraction = check_share(fraction, "sparse: fraction")
    check_choice("sparse: selection", selection, Selection)
    seed = shared_key("sparse", key)
    mechanism = as_transformation("sparse", mechanism)
    parts = parts_of(mechanism)
    refuse("sparse", parts, "opaque", "optimizer")
    _check_weights(mechanism)
    assert isinstance(mechanism, Mechanism)
    communicator = mechanism.communicator
    assert communicator is not None
    if selection == "shuffled":
        _check_turns(mechanism, math.ceil(1 / fraction))

    def coordinates(step, leaves):
        return select(selection, fraction, seed, step, [x.size for x in leaves])

    def vectors(params, more=0):
        """Shapes of what the mechanism is given, or of vectors that are longer."""
        leaves, treedef = jax.tree.flatten(params)
        places = jax.eval_shape(lambda: coordinates(0, leaves))
        return treedef.unflatten(
            jax.ShapeDtypeStruct((i.size + more,), jnp.result_type(x))
            for i, x in zip(places, leaves, strict=True)
        )

    def init(params):
        check_params("sparse", params)
        _check_sizes(params)
        check_same(
            *("sparse", communicator, params),
            fraction=fraction,
            selection=selection,
            key=seed,
        )
        cut = any(is_matrix(x) for x in jax.tree.leaves(params))
        with (
            around(f"sparse({{}}, {fraction}, selection={selection})"),
            dealing_out("sparse") if cut else contextlib.nullcontext(),
        ):
            _check_state_of(mechanism, vectors(params), vectors(params, more=1))
            zeros = optax.tree.zeros_like(vectors(params))
            state = mechanism.init(zeros)
        return SparseState(jnp.zeros((), jnp.int32), state)

    def update(updates, state, params=None, **extra_args):
        params = check_params("sparse", params)
        check_state("sparse", state, SparseState, params)
        check_not_divided("sparse")
        leaves, treedef = jax.tree.flatten(updates)
        # In simulation all workers then share one draw.
        places = coordinates(communicator.agreed(state.step), leaves)
        some = [
            treedef.unflatten(map(_gather, treedef.flatten_up_to(tree), places))
            for tree in (updates, params)
        ]
        averaged, mechanism_state = mechanism.update(
            some[0], state.mechanism_state, some[1], **extra_args
        )
        new = map(_scatter, treedef.flatten_up_to(averaged), places, leaves)
        step = optax.safe_increment(state.step)
        return treedef.unflatten(new), SparseState(step, mechanism_state)

    # The mechanism's matrices are not those by which a coordinate is averaged.
    parts = [part._replace(matrices=None) for part in parts]
    return wrap("sparse", mechanism, init, update, {"partial": True}, parts)


def _gather(x: jax.Array, places: jax.Array) -> jax.Array:
    """Returns the selected coordinates of a leaf, and 0 for unused places."""
    return jnp.ravel(x).at[places].get(mode="fill", fill_value=0)


def _scatter(values: jax.Array, places: jax.Array, like: jax.Array) -> jax.Array:
    """Returns `like` with other values in the selected coordinates."""
    flat = jnp.ravel(like).at[places].set(values.astype(like.dtype), mode="drop")
    return flat.reshape(like.shape)


def _check_weights(mechanism: optax.GradientTransformation) -> None:
    """Raises ValueError if models have weights that change when they are averaged."""
    for part in parts_of(mechanism):
        if part.facts.get("weighted"):
            raise ValueError(
                f"sparse averages other coordinates in each step, but {part.name} has "
                "one weight for all coordinates: use a graph whose matrices are doubly "
                "stochastic, with which weights stay 1, or gossip."
            )


def _check_sizes(params: PyTree) -> None:
    """Raises ValueError if coordinates cannot be counted in 31 bits."""
    for path, leaf in named_leaves(params):
        if jnp.size(leaf) > LARGEST_SIZE:
            raise ValueError(
                f"sparse: params{path} has {jnp.size(leaf)} coordinates, more than can "
                f"be numbered by int32, {LARGEST_SIZE}: split it into several arrays."
            )


def _check_state_of(mechanism: Mechanism, some: PyTree, longer: PyTree) -> None:
    """Raises ValueError if a mechanism keeps a state for each coordinate.

    Args:
      mechanism: the mechanism.
      some: the shapes of what it averages.
      longer: the shapes of vectors with one more coordinate, for comparison.
    """
    with collecting():  # Its parts are announced when its state is made.
        states = [jax.eval_shape(mechanism.init, shapes) for shapes in (some, longer)]
    shapes, others = (jax.tree.map(jnp.shape, state) for state in states)
    if shapes != others:
        raise ValueError(
            f"sparse averages other coordinates in each step, but {mechanism.name} "
            "keeps a state for each coordinate, which would be that of another one: "
            "use gossip or all_reduce."
        )


def _check_turns(mechanism: Mechanism, parts: int) -> None:
    """Raises ValueError if some parts always meet the same matrices of a schedule.

    Args:
      mechanism: the mechanism.
      parts: the number of parts that take turns.
    """
    for part in parts_of(mechanism):
        if part.matrices is None:
            continue
        matrices = part.matrices()
        period = len(matrices)
        common = math.gcd(period, parts)
        if common == 1 or contraction(matrices) >= 1:
            continue
        for first in range(common):
            steps = range(first, first + parts * period // common, parts)
            if contraction(matrices[[t % period for t in steps]]) >= 1:
                raise ValueError(
                    f"sparse: the {parts} parts take turns in step with the {period} "
                    f"matrices of {part.name}, so that the workers never become equal "
                    'in some coordinates: use selection="partitioned" or "random", or '
                    "a fraction whose number of parts has no factor in common with "
                    f"{period}."
                )
