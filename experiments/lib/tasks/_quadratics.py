"""Makes tasks in which random quadratics are minimized, whose optimum is known."""

import jax.numpy as jnp
import numpy as np

from ..quadratics import random_quadratics
from ._base import Setting, Task


def quadratics(
    setting: Setting,
    dim: int = 10,
    heterogeneity: float = 1.0,
    noise: float = 0.0,
    distance: float = 10.0,
    smallest: float | None = 0.5,
    steps_per_epoch: int = 10,
) -> Task:
    r"""Makes the task of minimizing the mean of the workers' random quadratics.

    The gradient of worker i is :math:`A_i^\top (A_i x - b_i)` plus noise, the root of
    whose expected squared norm is `noise`. The score is the suboptimality of a model
    under the mean of all workers' objectives, which are those of
    :func:`experiments.lib.quadratics.random_quadratics`.
    """
    problem = random_quadratics(
        setting.workers,
        dim,
        heterogeneity,
        distance=distance,
        smallest=smallest,
        seed=setting.seed,
    )
    best = problem.value(problem.optimum)
    local = np.asarray(setting.local_ranks)

    def gradient_fn(params, objective, noise):
        matrix, offset = objective
        residual = matrix @ params - offset
        gradient = matrix.T @ residual + noise
        return gradient, objective, {"loss": jnp.sum(residual**2)}

    def evaluate(params, model_state, batch):
        del model_state, batch
        # f(x) - f* equals the mean of |A_i (x - x*)|^2. In this form no digits are lost
        # near the optimum, where f(x) and f* are almost equal.
        matrices = jnp.asarray(problem.matrices, params.dtype)
        offset = params - jnp.asarray(problem.optimum, params.dtype)
        suboptimality = jnp.sum((matrices @ offset) ** 2) / setting.workers
        return {
            "loss": suboptimality + best,
            "suboptimality": suboptimality,
            "samples": jnp.ones((), params.dtype),
        }

    def batches(start, stop):
        def draw(epoch, rank):
            rng = np.random.default_rng((setting.seed, 1 + epoch, rank))
            return rng.standard_normal((steps_per_epoch, dim))

        first, last = start // steps_per_epoch, (stop - 1) // steps_per_epoch
        epochs = [
            [draw(epoch, rank) for rank in setting.local_ranks]
            for epoch in range(first, last + 1)
        ]
        offset = start - first * steps_per_epoch
        chosen = np.concatenate(epochs, axis=1)[:, offset : offset + stop - start]
        return chosen * (noise / np.sqrt(dim))

    return Task(
        init=lambda key: jnp.zeros(dim),
        gradient_fn=gradient_fn,
        evaluate=evaluate,
        held_out=lambda: [()],
        score="suboptimality",
        higher_is_better=False,
        batches=batches,
        steps_per_epoch=steps_per_epoch,
        model_state=(problem.matrices[local], problem.offsets[local]),
    )
