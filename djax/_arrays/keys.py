"""PRNG keys whose draws do not depend on how a program is made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def check_key(name: str, key: Any) -> None:
    """Raises TypeError unless it is None or one PRNG key, typed or of raw numbers.

    Args:
      name: who takes the key, for errors.
      key: what the user passed.
    """
    if key is None:
        return
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        raw = key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
        if key.ndim == 0 if typed else raw:
            return
    raise TypeError(
        f"{name}: key must be a single PRNG key such as jax.random.key(0), got {key!r}."
    )


def shared_key(name: str, key: jax.Array | None) -> jax.Array:
    """The key of draws that several workers have to make alike.

    Args:
      name: of the mechanism or code, for errors.
      key: the user's, typed or not, or None for one of the seed 0.

    Returns:
      A typed key whose draws do not depend on `vmap`.

    Raises:
      TypeError: if it is no key, for example a plain seed.
      ValueError: if the draws of this kind of key do.
    """
    check_key(name, key)
    if key is None:
        return jax.random.key(0, impl="threefry2x32")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        impl = "threefry2x32" if key.shape == (2,) else "rbg"
        key = jax.random.wrap_key_data(key, impl=impl)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"{name}: draws of the key {key} differ between workers under vmap; make "
            'it by jax.random.key(seed, impl="threefry2x32").'
        )
    return key


def key_of_step(key: jax.Array | None, step: ArrayLike) -> jax.Array:
    """The PRNG key of one step's message losses; of the seed 0 by default."""
    key = jax.random.key(0, impl="threefry2x32") if key is None else threefry(key)
    return jax.random.fold_in(key, step)


def threefry(key: jax.Array) -> jax.Array:
    """A key whose draws do not depend on `vmap`, made of one of any kind.

    Args:
      key: typed or not. Of other kinds than Threefry's the data are folded into one
        of the seed 0.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
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
