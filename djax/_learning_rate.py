"""Learning rates of optimizers that contain a mechanism.

An optimizer of optax leaves the learning rate to a link of its own. An optimizer whose
averaging and whose steps depend on each other has to know the rate itself.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_rate
from djax._arrays.precision import promote

# Some algorithms divide a change of the model by the learning rate. Below this rate, as
# at the start or the end of a schedule, the change says nothing about the gradients.
SMALLEST_LEARNING_RATE = 1e-8


def check_learning_rate(
    name: str, learning_rate: optax.ScalarOrSchedule, *, zero: bool = True
) -> None:
    """Raises ValueError unless a learning rate is a schedule, or a number in range.

    Args:
      name: the name of the optimizer, for the error.
      learning_rate: what the user passed.
      zero: whether a number may be 0.
    """
    if not callable(learning_rate):
        check_rate(f"{name}: learning_rate", learning_rate, zero=zero)


def rate_at(learning_rate: optax.ScalarOrSchedule, step: ArrayLike) -> jax.Array:
    """`float[]`, the learning rate of a step, in float32 or wider."""
    rate = learning_rate(step) if callable(learning_rate) else learning_rate
    check_rate("the learning rate", rate, zero=True)
    rate = jnp.asarray(rate)
    if not jnp.issubdtype(rate.dtype, jnp.floating):
        return rate.astype(float)
    return promote(rate)  # Half precision would round the smallest rates to zero.


def per_rank_of(learning_rate: optax.ScalarOrSchedule) -> list[str]:
    """Names the argument that processes do not compare.

    A schedule is a function, and has another address in each process.
    """
    return ["learning_rate"] if callable(learning_rate) else []
