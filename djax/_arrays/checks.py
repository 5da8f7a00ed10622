"""Checks of the arrays that users pass, with errors that name the leaf."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import PyTree


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their paths as texts, such as `['w']`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def is_function(value: Any) -> bool:
    """Whether a value is a function, and no tree of arrays.

    Modules of Equinox are trees that can be called, so that `callable` is not enough.
    """
    return callable(value) and jax.tree_util.all_leaves([value])


def check_arrays(
    function: str, tree: PyTree, *, what: str = "", modules: bool = True
) -> None:
    """Raises an error unless all leaves are arrays that can still be used.

    Args:
      function: the name of the function that was called, for the error.
      tree: the argument that is checked.
      what: the name of the argument, for the error.
      modules: whether modules of Flax NNX are accepted; besides parameters they may
        hold statistics and counters.

    Raises:
      TypeError: if a leaf is not an array.
      RuntimeError: if an array has been donated to a program, which has deleted it.
    """
    remedy = (
        "Keep what is no parameter out of the tree: "
        "`graph, params, rest = nnx.split(module, nnx.Param, ...)` of Flax NNX, "
        "`params, static = eqx.partition(module, eqx.is_inexact_array)` (or eqx.filter)"
        " of Equinox."
    )
    if not modules and (module := _find_module(tree)) is not None:
        raise TypeError(
            f"{function}: the parameters are an nnx.Module, {type(module).__name__}, "
            f"which may also hold statistics and counters. {remedy}"
        )
    for path, leaf in named_leaves(tree):
        name = f"{what}{path}" or "the argument"
        if not is_array(leaf):
            raise TypeError(
                f"{function}: {name} is {shortened(leaf)}, which is no array. {remedy}"
            )
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if concrete and leaf.is_deleted():
            raise RuntimeError(
                f"{function}: {name} has been donated: what make_steps returns takes "
                "over the memory of the workers that it is given. Go on with the "
                "workers that it returned; to keep others, copy them before by "
                "jax.tree.map(jnp.copy, workers)."
            )


def _find_module(tree: PyTree) -> Any:
    """Returns a module of Flax NNX in a tree, or None."""
    if (nnx := sys.modules.get("flax.nnx")) is None:
        return None
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Module))
    return next((x for x in leaves if isinstance(x, nnx.Module)), None)


def is_array(x: Any) -> bool:
    """Whether JAX accepts a value as an array."""
    if isinstance(x, (np.ndarray, np.generic)):
        return x.dtype.kind not in "OSUMm"
    if isinstance(x, (jax.Array, jax.ShapeDtypeStruct, bool, int, float, complex)):
        return True
    return hasattr(x, "__jax_array__")


def shortened(x: Any) -> str:
    """The text of a value for an error; if it is long, the name of the type instead."""
    text = repr(x)
    return text if len(text) <= 80 else f"a {type(x).__name__}"


def check_params(
    name: str,
    params: PyTree,
    remedy: str = "keep it out of the parameters or wrap the mechanism in optax.masked",
) -> PyTree:
    """Returns the parameters, or raises if they cannot be averaged.

    Args:
      name: the name of the mechanism, for errors.
      params: the parameters.
      remedy: what to do about an array whose numbers are not floats, for errors.

    Raises:
      ValueError: if there are no parameters.
      TypeError: if the numbers of a leaf are not floats.
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
    for path, leaf in named_leaves(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name} averages floating-point arrays, but params{path} is "
                f"{jnp.result_type(leaf)}{remedy}."
            )


def check_real(name: str, params: PyTree) -> None:
    """Raises TypeError if a parameter is complex."""
    for path, leaf in named_leaves(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"{name} is for real arrays, but params{path} is "
                f"{jnp.result_type(leaf)}."
            )


def check_leading_axis(
    function: str, args: PyTree, count: int, kwargs: Mapping[str, PyTree] | None = None
) -> None:
    """Raises unless every leaf is an array with a leading axis of `count` workers.

    Args:
      function: the name of the function that was called, for the error.
      args: its positional arguments.
      count: number of workers.
      kwargs: its keyword arguments.

    Raises:
      TypeError: if a leaf is not an array.
      ValueError: if an array has another leading axis.
    """
    named = {**dict(enumerate(args)), **(kwargs or {})}
    for argument, tree in named.items():
        for path, leaf in named_leaves(tree):
            name = f"argument {argument}{path}"
            if not is_array(leaf):
                raise TypeError(
                    f"{function}: {name} is {leaf!r}, but the program of all workers "
                    "takes arrays with a leading axis of workers: bind by "
                    "functools.partial what is no array."
                )
            _check_rows(function, name, np.shape(leaf), count)


def _check_rows(function: str, name: str, shape: tuple[int, ...], count: int) -> None:
    """Raises ValueError unless each worker has a row."""
    if shape[:1] != (count,):
        raise ValueError(
            f"{function}: {name} has shape {shape}, but needs a leading axis of the "
            f"{count} workers of this program: of data pass the rows of "
            "communicator.local_ranks; make optimizer states by "
            "communicator.spmd(optimizer.init)(params); "
            "djax.communicators.replicate gives all workers the same."
        )
