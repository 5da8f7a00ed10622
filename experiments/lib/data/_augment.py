"""Images are normalized, moved and mirrored on the device."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def normalizer(
    mean: Sequence[float], deviation: Sequence[float]
) -> Callable[[jax.Array], jax.Array]:
    """Makes a function from `uint8[..., channels]` to `float32[..., channels]`.

    Args:
      mean: of each channel, in units of the largest value.
      deviation: standard deviation of each channel, in the same units.
    """

    def normalize(images):
        scale = 1 / (255 * jnp.asarray(deviation, jnp.float32))
        shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(deviation, jnp.float32)
        return images.astype(jnp.float32) * scale - shift

    return normalize


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Moves each image by up to `padding` pixels, and mirrors half of the images.

    Args:
      key: source of randomness.
      images: `[batch, height, width, channels]`.
      padding: number of zeros that are put on each side.

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
