"""Checks the arguments and the results of a user's gradient function.

Without these checks, JAX or optax would report a mistake from deep inside a compiled
loop, without the name of the user's function.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from djax._arrays.checks import named_leaves
from djax._interfaces import PyTree

GradientFn = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]


def check_gradient_fn(
    name: str, gradient_fn: Any, params: PyTree, model_state: PyTree, batch: PyTree
) -> None:
    """Checks a gradient function by tracing it, without computing anything.

    Args:
      name: the function of djax that was given `gradient_fn`, for the error.
      gradient_fn: the gradient function.
      params: one worker's parameters, or their shapes.
      model_state: one worker's model state, or its shapes.
      batch: one worker's batch, or its shapes.

    Raises:
      TypeError: unless `gradient_fn` takes three arguments, and returns gradients like
        `params`, a model state like `model_state`, and metrics.
    """
    check_signature(name, gradient_fn)
    made = jax.eval_shape(gradient_fn, params, model_state, batch)
    check_gradients(name, made, params, model_state)


def check_signature(name: str, gradient_fn: Any) -> None:
    """Raises TypeError unless `gradient_fn` can be called with three arguments."""
    with contextlib.suppress(ValueError):  # Some built-in functions have no signature.
        try:
            inspect.signature(gradient_fn).bind(None, None, None)
        except TypeError:
            raise TypeError(
                f"{name}: gradient_fn must take params, model_state and batch, got "
                f"{gradient_fn!r}."
            ) from None


def check_gradients(name: str, made: Any, params: PyTree, model_state: PyTree) -> None:
    """Raises TypeError unless `made` is (gradients, model state, metrics), as expected.

    Args:
      name: the function of djax that was given the gradient function, for the error.
      made: the result of the gradient function, or its shapes.
      params: one worker's parameters, whose shapes the gradients need.
      model_state: one worker's model state, whose shapes and dtypes the new one needs.
    """
    if not isinstance(made, tuple) or len(made) != 3:
        raise TypeError(
            f"{name}: gradient_fn must return gradients, model_state and metrics, got "
            f"{_outline(made)}."
        )
    if not _alike(jnp.shape, params, made[0]):
        shapes, found = jax.tree.map(jnp.shape, (params, made[0]))
        raise TypeError(
            f"{name}: gradient_fn must return gradients of the shapes {shapes}, got "
            f"{found}."
        )
    _check_number_kinds(name, params, made[0])
    if not _alike(_kind, model_state, made[1]):
        kinds, found = jax.tree.map(_kind, (model_state, made[1]))
        raise TypeError(
            f"{name}: gradient_fn must return a model_state like {kinds}, got {found}."
        )


def check_unchanged(name: str, before: PyTree, after: PyTree) -> None:
    """Raises TypeError if a step changes the type of the state or of the parameters.

    A loop on the device needs arrays of the same structure, shapes and dtypes after
    every step. JAX's own error would name none of the user's functions.

    Args:
      name: the function of djax that makes the loop, for the error.
      before: parameters and optimizer state before a step.
      after: parameters and optimizer state after the step.
    """
    remedy = (
        "let gradient_fn return gradients in the dtypes of the parameters, or give the "
        "optimizer the dtype of its state (such as accumulator_dtype of optax.sgd)."
    )
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"{name}: the optimizer returns a state of another structure than the one "
            "it was given: make the workers by init_workers with this optimizer."
        )
    leaves = jax.tree.leaves(after)
    for (path, old), new in zip(named_leaves(before), leaves, strict=True):
        weak = getattr(old, "weak_type", False)  # Such a value may change its dtype.
        same_dtype = weak or jnp.result_type(old) == jnp.result_type(new)
        if jnp.shape(old) != jnp.shape(new) or not same_dtype:
            raise TypeError(
                f"{name}: the optimizer turns workers{path} from {_outline(old)} into "
                f"{_outline(new)}: {remedy}"
            )


def _check_number_kinds(name: str, params: PyTree, grads: PyTree) -> None:
    """Raises TypeError if a gradient is an integer, or complex for a real parameter."""
    gradients = jax.tree.leaves(grads)
    for (path, param), grad in zip(named_leaves(params), gradients, strict=True):
        kind, found = jnp.result_type(param), jnp.result_type(grad)
        if not jnp.issubdtype(kind, jnp.inexact):
            continue
        if not jnp.issubdtype(found, jnp.inexact) or (
            jnp.issubdtype(found, jnp.complexfloating)
            and not jnp.issubdtype(kind, jnp.complexfloating)
        ):
            raise TypeError(
                f"{name}: gradient_fn returns a gradient of dtype {found} for "
                f"params{path}, which is {kind}."
            )


def _alike(kind: Callable[[Any], Any], one: PyTree, other: PyTree) -> bool:
    """Whether two trees have the same structure, and leaves of the same kinds.

    The trees themselves cannot be compared by `==`: a class of nodes need not define
    equality, such as the `State` of Equinox.
    """
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(kind(x) == kind(y) for x, y in leaves)


def _kind(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _outline(tree: Any) -> str:
    """Returns the tree as text, with dtypes and shapes in place of arrays."""
    try:
        return str(
            jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)
        )
    except TypeError:
        return repr(tree)
