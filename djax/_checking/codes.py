"""Finds out by measuring whether a code is a contraction, or unbiased.

CHOCO and DeepSqueeze diverge with a code that is not a contraction, and DCD and ECD
lose what a biased code leaves out. The codes of djax declare their class, but those of
users need not. :func:`djax.check` therefore lets such codes compress random models.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.precision import promote
from djax._interfaces import Communicator, Compressor, PyTree
from djax._mechanism.refusals import Part
from djax.compressors.checks import name_of
from djax.mixing import difference

_LARGEST = 4096  # Leaves with more entries are cut before codes are measured.
_HARMLESS = 0.03  # Rounding to bfloat16 has a smaller bias than this.


def problems_of_codes(
    parts: Sequence[Part], communicator: Communicator, shapes: PyTree
) -> list[str]:
    """Describes codes that are not of the class that their mechanism needs.

    Only codes that do not declare their class are measured.

    Args:
      parts: the mechanisms, with the codes that they were given.
      communicator: connects the workers.
      shapes: the shapes of the parameters of one worker.
    """
    problems = {}
    shapes = jax.tree.map(_few_entries, shapes)
    for part in parts:
        for kind, measure, limit, text in (
            ("contraction", mean_error, 1.0, _no_contraction),
            ("unbiased", bias, _HARMLESS, _biased),
        ):
            code = part.conditions.get(kind)
            if code is None or getattr(code, kind, None) is not None:
                continue
            found = _measured(measure, code, communicator, shapes)
            if not found < limit:  # A code may also return NaN.
                problem = text(part.name, name_of(code), found)
                problems[part.name, kind, id(code)] = problem
    return list(problems.values())


def _measured(
    measure: Callable[..., jax.Array],
    code: Any,
    communicator: Communicator,
    shapes: PyTree,
) -> float:
    """Averages a measurement over all workers, so that all come to the same verdict."""

    def worker(_):
        return communicator.mean(measure(code, shapes))

    found = jax.jit(communicator.spmd(worker))(jnp.zeros(communicator.rows))
    return float(np.asarray(found.addressable_data(0))[0])


def _no_contraction(name: str, code: str, error: float) -> str:
    return (
        f"{name} needs a contraction, but of random models {code} leaves out "
        f"{error:.3g} times their square norm, on average: the models would diverge. "
        f"If it is unbiased, divide what it decompresses by {1 + error:.3g}; or use a "
        "code such as djax.compressors.top_k(0.01)."
    )


def _biased(name: str, code: str, bias: float) -> str:
    return (
        f"{name} needs an unbiased code, but of a random model the mean of many draws "
        f"of {code} is off by {bias:.1%} of its norm: what is left out would be lost. "
        "Use a code such as djax.compressors.quantize(8); biased codes are for "
        "choco_gossip and deep_squeeze."
    )


def _few_entries(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Halves the longest dimension until measuring a code takes little time."""
    shape = list(x.shape)
    while np.prod(shape) > _LARGEST:
        longest = int(np.argmax(shape))
        shape[longest] = -(-shape[longest] // 2)
    return x.update(shape=tuple(shape))


def mean_error(code: Compressor, shapes: PyTree, draws: int = 64) -> jax.Array:
    r"""Measures :math:`E\|C(x) - x\|^2 / \|x\|^2`, which is below 1 for contractions.

    For a contraction it is below 1 for every tree x. Some codes fail only for one kind
    of trees, so that two kinds are drawn. Half of the trees have normally distributed
    entries. The entries of the other half are cubes of normally distributed numbers,
    which differ much more in size.

    Args:
      code: a code of any class.
      shapes: the shapes of the trees.
      draws: number of trees of each of the two kinds.

    Returns:
      `float[]`, the larger one of the two means.
    """

    def measure(state, key, power):
        tree = jax.tree.map(lambda x: x**power, optax.tree.random_like(key, shapes))
        sent, state = _sent(code, tree, state)
        return state, _square_norm(difference(sent, tree)) / _square_norm(tree)

    def mean(power):
        keys = jax.random.split(jax.random.key(0), draws)
        _, errors = jax.lax.scan(
            lambda state, key: measure(state, key, power), _start(code, shapes), keys
        )
        return errors.mean()

    return jnp.maximum(mean(1), mean(3))


def bias(code: Compressor, shapes: PyTree, draws: int = 128) -> jax.Array:
    r"""Measures :math:`\|E[C(x)] - x\| / \|x\|`, which is 0 for unbiased codes.

    The mean of finitely many draws also differs from x by chance. A difference of less
    than about three standard deviations of that mean counts as 0.

    Args:
      code: a code of any class.
      shapes: the shapes of the tree that it compresses, whose entries are normal.
      draws: number of times that the tree is compressed.

    Returns:
      `float[]`.
    """
    tree = optax.tree.random_like(jax.random.key(0), shapes)

    def add(carry, _):
        state, total, squares = carry
        sent, state = _sent(code, tree, state)
        error = difference(sent, tree)
        total = jax.tree.map(jnp.add, total, error)
        return (state, total, squares + _square_norm(error)), None

    nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), tree)
    start = _start(code, shapes), nothing, jnp.zeros_like(_square_norm(tree))
    (_, total, squares), _ = jax.lax.scan(add, start, length=draws)
    square = _square_norm(total) / draws**2
    chance = (squares / draws - square) / draws
    found = jnp.where(square > 10 * chance, square, 0)
    return jnp.sqrt(found / _square_norm(tree))


def _start(code: Compressor, shapes: PyTree) -> PyTree:
    return code.init(optax.tree.zeros_like(shapes))


def _sent(code: Compressor, tree: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """Returns a tree as it arrives, and the next state of the code."""
    message, state = code.compress(tree, state)
    return code.decompress(message, tree), state


def _square_norm(tree: PyTree) -> jax.Array:
    return optax.tree.norm(jax.tree.map(promote, tree), squared=True)
