"""Checks of the codes that mechanisms are given: what they are, and of which class."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._base import Compressor, PyTree, wide
from .topologies._kinds import describe

# How the codes of djax.compressors are called where a contraction is needed, ...
_CONTRACTIONS = {
    "identity": "identity()",
    "top_k": "top_k(0.01)",
    "random_k": "random_k(0.01)",
    "sign": "sign()",
    "low_rank": "low_rank(1)",
    "quantize": "quantize(4, unbiased=False)",
}
# ... and where an unbiased code is.
_UNBIASED = {
    "identity": "identity()",
    "random_k": "random_k(0.5, unbiased=True)",
    "quantize": "quantize(8)",
}


def check_contraction(name: str, code: Any) -> None:
    """Raises unless a mechanism that needs a contraction may be given the code.

    Args:
      name: of the mechanism, for errors.
      code: what the user passed as the code.

    Raises:
      TypeError: if it is no :class:`djax.Compressor`.
      ValueError: if it is declared to be no contraction.
    """
    check_compressor(name, code, _CONTRACTIONS)
    if getattr(code, "contraction", None) is False:
        raise ValueError(
            f"{name} needs a contraction, and {name_of(code)} is declared to be none: "
            "the models would diverge. Make the code with unbiased=False, as in "
            "compressors.quantize(4, unbiased=False), or use another such as "
            "compressors.top_k(0.01)."
        )


def check_unbiased(name: str, code: Any) -> None:
    """Raises unless a mechanism that needs an unbiased code may be given the code.

    Args:
      name: of the mechanism, for errors.
      code: what the user passed as the code.

    Raises:
      TypeError: if it is no :class:`djax.Compressor`.
      ValueError: if it is declared to be biased.
    """
    check_compressor(name, code, _UNBIASED)
    if getattr(code, "unbiased", None) is False:
        raise ValueError(
            f"{name} needs an unbiased code, and {name_of(code)} is declared to be "
            "biased: what the code leaves out would be lost. Use "
            "compressors.quantize(8), or random_k with unbiased=True; biased codes are "
            "for choco_gossip and deep_squeeze."
        )


def mean_error(code: Compressor, shapes: PyTree, draws: int = 64) -> jax.Array:
    r"""Measures :math:`E\|C(x) - x\|^2 / \|x\|^2`, which is below 1 of a contraction.

    That has to hold for every x. The entries of half of the trees that are drawn are
    normal. Those of the others are cubes of such numbers, which differ much more in
    size, since some codes bear only one of the two.

    Args:
      code: a code of any kind.
      shapes: of the trees that it compresses.
      draws: number of trees of each of the two kinds.

    Returns:
      `float[]`, the larger one of the two means.
    """

    def measure(state, key, power):
        tree = jax.tree.map(lambda x: x**power, optax.tree.random_like(key, shapes))
        sent, state = _sent(code, tree, state)
        return state, _square_norm(_minus(sent, tree)) / _square_norm(tree)

    def mean(power):
        keys = jax.random.split(jax.random.key(0), draws)
        _, errors = jax.lax.scan(
            lambda state, key: measure(state, key, power), _start(code, shapes), keys
        )
        return errors.mean()

    return jnp.maximum(mean(1), mean(3))


def bias(code: Compressor, shapes: PyTree, draws: int = 128) -> jax.Array:
    r"""Measures :math:`\|E[C(x)] - x\| / \|x\|`, which is 0 of an unbiased code.

    The mean of finitely many draws is off by chance, too: what is less than about three
    standard deviations of that mean counts as nothing.

    Args:
      code: a code of any kind.
      shapes: of the tree that it compresses, whose entries are normal.
      draws: number of times that the tree is compressed.

    Returns:
      `float[]`.
    """
    tree = optax.tree.random_like(jax.random.key(0), shapes)

    def add(carry, _):
        state, total, squares = carry
        sent, state = _sent(code, tree, state)
        error = _minus(sent, tree)
        total = jax.tree.map(jnp.add, total, error)
        return (state, total, squares + _square_norm(error)), None

    nothing = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), tree)
    start = _start(code, shapes), nothing, jnp.zeros_like(_square_norm(tree))
    (_, total, squares), _ = jax.lax.scan(add, start, length=draws)
    square = _square_norm(total) / draws**2
    chance = (squares / draws - square) / draws
    found = jnp.where(square > 10 * chance, square, 0)
    return jnp.sqrt(found / _square_norm(tree))


def _start(code: Compressor, shapes: PyTree) -> PyTree:
    return code.init(optax.tree.zeros_like(shapes))


def _sent(code: Compressor, tree: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """What a tree becomes on its way, and the code's next state."""
    message, state = code.compress(tree, state)
    return code.decompress(message, tree), state


def _minus(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: wide(a) - wide(b), x, y)


def _square_norm(tree: PyTree) -> jax.Array:
    return optax.tree.norm(jax.tree.map(wide, tree), squared=True)


def name_of(code: Any) -> str:
    """What a code is called: as the function that made it, where there is one."""
    maker = getattr(code.compress, "__qualname__", "").split(".")[0]
    return maker if maker.isidentifier() else "the code"


def check_compressor(
    name: str, code: Any, calls: dict[str, str] = _CONTRACTIONS
) -> None:
    """Raises TypeError, which names the call that was meant, unless it is a code.

    Args:
      name: who takes the code, for errors.
      code: what the user passed. Any object with the three functions of a
        :class:`djax.Compressor` will do.
      calls: how codes that fit are made.
    """
    parts = [getattr(code, part, None) for part in Compressor._fields[:3]]
    if not isinstance(code, type) and all(map(callable, parts)):
        return
    called = code if isinstance(code, str) else getattr(code, "__name__", None)
    fitting = calls["quantize"]
    if code is Compressor or isinstance(code, tuple):
        meant = "make one of its functions by Compressor(init, compress, decompress)"
    elif called in calls:
        meant = f"call compressors.{calls[called]}"
    elif called in _CONTRACTIONS:
        meant = f"compressors.{_CONTRACTIONS[called]} would be one, but a biased one: "
        meant += f"use an unbiased one such as compressors.{fitting}"
    else:
        meant = f"codes are made by calls such as compressors.{fitting}"
    raise TypeError(f"{name} needs a djax.Compressor, got {describe(code)}: {meant}.")
