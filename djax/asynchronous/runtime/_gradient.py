"""One worker's gradients, each from its own batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import PyTree
from djax.asynchronous.simulator._batches import OwnBatches
from djax.training._gradient_fn import GradientFn, check_gradients


class Gradient:
    """Computes one worker's gradients, each from its own batch.

    Args:
      gradient_fn: what is computed.
      stream: the batches.
      jit: whether it is compiled.
    """

    def __init__(self, gradient_fn: GradientFn, stream: OwnBatches, jit: bool):
        """Compiles nothing yet."""
        self._fn, self._stream, self._jit = gradient_fn, stream, jit
        self._program: Any = None
        self._epoch: PyTree = None
        self._on_device: PyTree = None
        self._checked = jit

    def compile(self, params: PyTree, model_state: PyTree) -> PyTree:
        """Compiles it, and returns what gradients are like."""
        if not self._jit:
            return params
        program = _make_program(self._fn)
        lowered = program.lower(params, model_state, *self.batch(0))
        self._program = lowered.compile()
        return lowered.out_info[0]

    def batch(self, turn: int) -> tuple[PyTree, np.int32]:
        """The epoch, on the device, and where in it a gradient's batch is."""
        epoch, step = self._stream.locate(turn)
        if epoch is not self._epoch:
            put = jnp.asarray if self._jit else lambda x: x
            self._epoch, self._on_device = epoch, jax.tree.map(put, epoch)
        return self._on_device, np.int32(step)

    def __call__(
        self, params: PyTree, model_state: PyTree, epoch: PyTree, step: np.int32
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Computes gradients, the next model state, and metrics.

        Raises:
          TypeError: if a plain Python function returns something else.
        """
        if self._program is not None:
            results = self._program(params, model_state, epoch, step)
        else:
            batch = jax.tree.map(lambda x: x[0, step], epoch)
            results = self._fn(params, model_state, batch)
            if not self._checked:
                check_gradients("run", results, params, model_state)
                self._checked = True
        return jax.block_until_ready(results)


@functools.lru_cache(maxsize=8)
def _make_program(gradient_fn: GradientFn):
    """Kept, so that another run of it in the same process compiles nothing."""

    @jax.jit
    def at(params, model_state, epoch, step):
        batch = jax.tree.map(lambda x: x[0, step], epoch)
        return gradient_fn(params, model_state, batch)

    return at
