"""Splits a model into fragments that are averaged at different times.

A fragment is a tree like the model in which every leaf of the other fragments is
replaced by `optax.MaskedNode()`, which has no leaves. In this way, mechanisms and
optimizers find a leaf of a fragment under the same path as in the model.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from djax._arrays.checks import is_function
from djax._interfaces import PyTree
from djax._values import check_integer, is_whole


def check_fragments(name: str, fragments: Any) -> int | None:
    """Returns the number of fragments; None if it depends on the parameters.

    Args:
      name: the name of the function that was given the fragments, for errors.
      fragments: a number of fragments, a tree of numbers, or a function.

    Raises:
      ValueError: if the number is not a positive integer, or if the tree does not use
        all numbers from 0 to its largest one.
    """
    if is_function(fragments):
        return None
    if jax.tree_util.all_leaves([fragments]):
        return check_integer(fragments, f"{name}: fragments")
    return _count(name, jax.tree.leaves(fragments))


def number_leaves(name: str, fragments: Any, params: PyTree) -> list[int]:
    """Says for each leaf of the parameters to which fragment it belongs.

    Args:
      name: the name of the function that was given the fragments, for errors.
      fragments: the number of fragments, into which the leaves are then split in their
        order, so that the fragments have about equally many coordinates; a tree of
        numbers like the parameters, or a prefix of one; or a function from the
        parameters to such a tree.
      params: one worker's parameters.

    Raises:
      ValueError: if there are more fragments than leaves, or if the numbers do not fit
        the parameters.
    """
    if is_whole(fragments):
        return _split_evenly(name, int(fragments), jax.tree.leaves(params))
    labels = fragments(params) if is_function(fragments) else fragments
    try:
        spread = jax.tree.map(
            lambda label, part: [label] * len(jax.tree.leaves(part)), labels, params
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: fragments must be a tree of numbers like the parameters, "
            f"{jax.tree.structure(params)}, or a prefix of it, got {labels}."
        ) from error
    numbers = jax.tree.leaves(spread)
    if jax.tree.leaves(params):
        _count(name, numbers)
    return [int(number) for number in numbers]


def pick(tree: PyTree, numbers: Sequence[int], fragment: int) -> PyTree:
    """Returns one fragment of a tree like the parameters.

    Args:
      tree: a tree like the parameters.
      numbers: for each leaf the number of its fragment.
      fragment: the number of the fragment.
    """
    if max(numbers, default=0) == 0:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    mine = [
        leaf if number == fragment else optax.MaskedNode()
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return treedef.unflatten(mine)


def put(tree: PyTree, numbers: Sequence[int], fragment: int, part: PyTree) -> PyTree:
    """Returns a tree like the parameters with one fragment replaced; see :func:`pick`.

    Args:
      tree: a tree like the parameters.
      numbers: for each leaf the number of its fragment.
      fragment: the number of the fragment.
      part: the fragment.
    """
    leaves, treedef = jax.tree.flatten(tree)
    mine = iter(jax.tree.leaves(part))
    return treedef.unflatten(
        next(mine) if number == fragment else leaf
        for leaf, number in zip(leaves, numbers, strict=True)
    )


class Slots:
    """Arrays that hold one fragment at a time, whichever it is.

    The arrays are shared between the fragments: as many of each shape and dtype as the
    fragment that needs the most of them. If all fragments are alike, such as groups of
    layers of a transformer, the slots take no more memory than one fragment.

    Attributes:
      places: for each fragment the slots of its leaves, in their order.
    """

    def __init__(self, params: PyTree, numbers: Sequence[int]):
        """Assigns slots to the leaves of all fragments.

        Args:
          params: one worker's parameters, or their shapes.
          numbers: for each leaf the number of its fragment.
        """
        slots: list[tuple[Any, int]] = []  # The kind of each slot, and a count in it.
        self.places: list[list[int]] = []
        leaves = jax.tree.leaves(params)
        for fragment in range(max(numbers, default=0) + 1):
            used: dict[Any, int] = {}
            mine = []
            for leaf, number in zip(leaves, numbers, strict=True):
                if number != fragment:
                    continue
                kind = np.shape(leaf), jax.numpy.result_type(leaf)
                used[kind] = used.get(kind, 0) + 1
                if (slot := (kind, used[kind])) not in slots:
                    slots.append(slot)
                mine.append(slots.index(slot))
            self.places.append(mine)
        self._kinds = [kind for kind, _ in slots]

    def empty(self) -> tuple[jax.Array, ...]:
        """Returns slots of zeros."""
        return tuple(jax.numpy.zeros(shape, dtype) for shape, dtype in self._kinds)


def _count(name: str, numbers: Sequence[Any]) -> int:
    """Returns the number of fragments, or raises unless all numbers below are used."""
    used = set(numbers) if all(map(is_whole, numbers)) else set()
    if used != set(range(len(used))) or not used:
        raise ValueError(
            f"{name}: fragments must number the leaves by the integers 0, 1, ..., and "
            f"leave none out; got {sorted(used) if used else list(numbers)}."
        )
    return len(used)


def _split_evenly(name: str, count: int, leaves: Sequence[Any]) -> list[int]:
    """Splits leaves, in their order, into groups of about equally many coordinates."""
    if count > max(len(leaves), 1):
        raise ValueError(
            f"{name}: fragments={count}, but the parameters have only {len(leaves)} "
            "leaves, and a leaf is not cut: use fewer fragments, or keep the layers in "
            "leaves of their own."
        )
    sizes = np.array([np.size(leaf) for leaf in leaves], float)
    ends = np.cumsum(sizes)
    middles = (ends - sizes / 2) / max(sizes.sum(), 1)
    numbers = np.minimum((middles * count).astype(int), count - 1)
    # Every fragment needs a leaf, also if a few leaves have most coordinates.
    for i in range(len(leaves)):
        before = numbers[i - 1] if i else -1
        rest = len(leaves) - 1 - i
        least = max(before, count - 1 - rest)
        numbers[i] = min(max(numbers[i], least), before + 1)
    return numbers.tolist()
