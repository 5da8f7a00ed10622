"""Finds gradients and models that are infinite or not a number.

One such number is enough to lose a run: averaging spreads it to the neighbours, and
after as many steps as the diameter of the graph every model is lost. The argument
`nonfinite` of :func:`djax.training.make_steps` decides what happens to such a gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.finite import all_finite, is_float
from djax._interfaces import Communicator, PyTree

NonFinite = Literal["raise", "skip", "isolate"]

_FINE, _GRADIENT, _PARAMS = range(3)
"""What was not finite in one step of one worker: nothing, its own gradient, or only its
parameters after the step."""


class NonFiniteError(FloatingPointError):
    """A worker's gradient or model has become infinite or not a number.

    Attributes:
      ranks: the workers in which such a number appeared first. Workers to which
        averaging spread it later are not included.
      step: index, within the call, of the step in which it appeared, or None if the
        parameters were not finite before the call. In asynchronous training, the index
        among the worker's own gradients.
      workers: all local workers after the call, which the call would have returned;
        None in asynchronous training.
      metrics: the metrics that the call would have returned; None in asynchronous
        training.
    """

    def __init__(
        self,
        message: str,
        ranks: Sequence[int] = (),
        step: int | None = None,
        workers: Any = None,
        metrics: PyTree = None,
    ):
        """Takes the message and the attributes."""
        super().__init__(message)
        self.ranks, self.step = tuple(ranks), step
        self.workers, self.metrics = workers, metrics


def flaw(grads: PyTree, params: PyTree) -> jax.Array:
    """Returns what is not finite in one step of one worker, `uint8[]`.

    If the gradient is not finite, the parameters after the step are not finite either.
    The gradient is their cause, and is what is returned then.

    Args:
      grads: the worker's own gradient.
      params: the worker's parameters after the step.
    """
    after = jnp.where(all_finite(params), _FINE, _PARAMS)
    return jnp.where(all_finite(grads), after, _GRADIENT).astype(jnp.uint8)


def without_step(
    finite: jax.Array, grads: PyTree, new: PyTree, old: PyTree
) -> tuple[PyTree, PyTree]:
    """Replaces a gradient that is not finite by zeros, and keeps the old model state.

    Args:
      finite: `bool[]`, whether the gradient is finite.
      grads: the gradient.
      new: the model state that was computed with the gradient.
      old: the model state before the step.

    Returns:
      `grads` and `new` if the gradient is finite, otherwise zeros and `old`.
    """
    zero = jax.tree.map(
        lambda g: jnp.where(finite, g, jnp.zeros_like(g)) if is_float(g) else g, grads
    )
    return zero, jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)


def make_check(communicator: Communicator) -> Callable[..., None]:
    """Makes a function that raises the same :class:`NonFiniteError` on all processes.

    Returns:
      `(started, flaws, workers, metrics) -> None`. `started` is `bool[local]`: whether
      the parameters of each local worker were finite before the first step. `flaws` is
      `uint8[local, steps]` from :func:`flaw`. `workers` and `metrics` become attributes
      of the error. The function waits until `started` and `flaws` are computed.
    """
    size = communicator.size

    def worker(started, flaws):
        """Returns the first flaws of all workers as codes, `float32[size]`."""
        first = _first_flaw(jnp, started, flaws).astype(jnp.float32)
        mine = jnp.arange(size) == communicator.rank()
        return communicator.mean(jnp.where(mine, first, 0.0))

    agree = jax.jit(communicator.spmd(worker))

    def check(started, flaws, workers, metrics):
        if communicator.shares_device:  # All workers are here: nothing is compiled.
            firsts = _first_flaw(np, np.asarray(started), np.asarray(flaws))
        else:
            shares = agree(started, flaws).addressable_shards[0].data
            firsts = np.rint(np.asarray(shares)[0] * size).astype(int)
        if (firsts < 0).all():
            return
        first = firsts[firsts >= 0].min()
        ranks = tuple(np.flatnonzero(firsts == first).tolist())
        step = None if first == 0 else int(first - 1) // 2
        message = _describe(ranks, step, first % 2 == 1, flaws.shape[1])
        raise NonFiniteError(message, ranks, step, workers, metrics)

    return check


def _first_flaw(xp: Any, started: Any, flaws: Any) -> Any:
    """Returns the first flaw of a call as a code, `int32[...]`.

    Args:
      xp: NumPy or `jax.numpy`.
      started: `bool[...]`, whether the parameters were finite before the first step.
      flaws: `uint8[..., steps]`, from :func:`flaw`.

    Returns:
      `2 * step + flaw`; 0 if the parameters were not finite before the first step, and
      -1 if there was no flaw.
    """
    never = np.iinfo(np.int32).max
    steps = xp.arange(flaws.shape[-1], dtype=xp.int32)
    codes = xp.where(flaws == _FINE, never, 2 * steps + flaws.astype(xp.int32))
    first = codes.min(-1)
    return xp.where(started, xp.where(first == never, -1, first), 0)


def _describe(
    ranks: tuple[int, ...], step: int | None, gradient: bool, steps: int
) -> str:
    named = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
    whose = f"worker {named}" if len(ranks) == 1 else f"workers {named}"
    if step is None:
        return (
            f"make_steps: the parameters of {whose} were not finite before the first "
            "step; start from others, or from an older checkpoint."
        )
    when = f"step {step + 1} of the {steps} of this call (batches[:, {step}])"
    if gradient:
        return (
            f"make_steps: the gradient of {whose} is not finite in {when}. Look at "
            "these data, or lower the learning rate; nonfinite='skip' leaves out such "
            "gradients, and nonfinite='isolate' lets the other workers go on alone."
        )
    return (
        f"make_steps: the parameters of {whose} are not finite after {when}, although "
        "all gradients were: the optimizer's or the averaging's own step is too large. "
        "Lower the learning rate or the consensus rate."
    )
