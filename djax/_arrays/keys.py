"""PRNG keys whose draws are the same in simulation, on a mesh and over MPI."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def is_key(value: Any) -> bool:
    """Whether a value is an array of typed PRNG keys."""
    return jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)


def check_key(name: str, key: Any) -> None:
    """Raises TypeError unless a value is None or one PRNG key, typed or of raw numbers.

    Args:
      name: the name of the function that takes the key, for errors.
      key: the key that the user passed.
    """
    if key is None:
        return
    if isinstance(key, (jax.Array, np.ndarray)):
        raw = key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
        if key.ndim == 0 if is_key(key) else raw:
            return
    raise TypeError(
        f"{name}: key must be a single PRNG key such as jax.random.key(0), got {key!r}."
    )


def shared_key(name: str, key: jax.Array | None) -> jax.Array:
    """Returns the key of draws that have to be the same on several workers.

    Args:
      name: the name of the mechanism or code, for errors.
      key: the key that the user passed, typed or not; None for a key of the seed 0.

    Returns:
      A typed key whose draws are the same with and without `vmap`.

    Raises:
      TypeError: if `key` is not a key, for example a plain seed.
      ValueError: if the draws of this kind of key differ under `vmap`.
    """
    check_key(name, key)
    if key is None:
        return jax.random.key(0, impl="threefry2x32")
    if not is_key(key):
        impl = "threefry2x32" if key.shape == (2,) else "rbg"
        key = jax.random.wrap_key_data(key, impl=impl)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"{name}: draws of the key {key} differ between workers under vmap; make "
            'it by jax.random.key(seed, impl="threefry2x32").'
        )
    return key


def key_of_step(key: jax.Array | None, step: ArrayLike) -> jax.Array:
    """Returns the PRNG key that decides which messages of a step are lost."""
    key = jax.random.key(0, impl="threefry2x32") if key is None else threefry(key)
    return jax.random.fold_in(key, step)


def threefry(key: jax.Array) -> jax.Array:
    """Makes a Threefry key of any key, since its draws are the same under `vmap`.

    Args:
      key: a key, typed or not. The data of a key of another kind are folded into a
        Threefry key of the seed 0.
    """
    if not is_key(key):
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
