"""Normalizes, shifts and mirrors images on the device, in the compiled step."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def normalizer(
    mean: Sequence[float], deviation: Sequence[float]
) -> Callable[[jax.Array], jax.Array]:
    """Makes a function that normalizes each channel to mean 0 and deviation 1.

    Args:
      mean: mean of each channel, as a fraction of the largest value, 255.
      deviation: standard deviation of each channel, as a fraction of 255.

    Returns:
      A function from `uint8[..., channels]` to `float32[..., channels]`.
    """

    def normalize(images):
        scale = 1 / (255 * jnp.asarray(deviation, jnp.float32))
        shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(deviation, jnp.float32)
        return images.astype(jnp.float32) * scale - shift

    return normalize


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Shifts each image at random by up to `padding` pixels, and mirrors about half.

    Returns:
      Images of the same shape.
    """
    moving, mirroring = jax.random.split(key)
    if padding:
        padded = jnp.pad(images, ((0, 0), *[(padding, padding)] * 2, (0, 0)))
        corners = jax.random.randint(moving, (len(images), 2), 0, 2 * padding + 1)
        size = images.shape[1:]

        def crop(image, corner):
            start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
            return jax.lax.dynamic_slice(image, start, size)

        images = jax.vmap(crop)(padded, corners)
    mirrored = jax.random.bernoulli(mirroring, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
