"""One worker's gradients, each from its own batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import PyTree
from djax.training import GradientFn, check_gradients

from ..simulator import OwnBatches


class Gradient:
    """Computes one worker's gradients, each from its own batch.

    Args:
      gradient_fn: the user's function, which computes one gradient.
      stream: this worker's batches.
      jit: whether `gradient_fn` is compiled.
    """

    def __init__(self, gradient_fn: GradientFn, stream: OwnBatches, jit: bool):
        """Compiles nothing yet; `compile` does."""
        self._fn, self._stream, self._jit = gradient_fn, stream, jit
        self._program: Any = None
        self._epoch: PyTree = None
        self._on_device: PyTree = None
        self._checked = jit

    def compile(self, params: PyTree, model_state: PyTree) -> PyTree:
        """Compiles `gradient_fn`; returns the shapes and dtypes of a gradient."""
        if not self._jit:
            return params
        program, arguments = _make_program(self._fn), self.batch(0)
        traced = program.trace(params, model_state, *arguments)
        if traced.jaxpr.effects:
            # JAX cannot call a compiled program twice that exchanges messages. A call
            # whose results are not used compiles it.
            self._program = program
            jax.block_until_ready(program(params, model_state, *arguments))
        else:
            self._program = traced.lower().compile()
        return traced.out_info[0]

    def batch(self, turn: int) -> tuple[PyTree, np.int32]:
        """Returns a gradient's batch as an epoch, on the device, and a step in it."""
        epoch, step = self._stream.locate(turn)
        if epoch is not self._epoch:
            put = jnp.asarray if self._jit else lambda x: x
            self._epoch, self._on_device = epoch, jax.tree.map(put, epoch)
        return self._on_device, np.int32(step)

    def __call__(
        self, params: PyTree, model_state: PyTree, epoch: PyTree, step: np.int32
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Computes a gradient, the next model state, and metrics.

        Raises:
          TypeError: if `gradient_fn`, when it is not compiled, does not return these.
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
    """Makes a program that is cached, so that another run does not compile it again."""

    @jax.jit
    def at(params, model_state, epoch, step):
        batch = jax.tree.map(lambda x: x[0, step], epoch)
        return gradient_fn(params, model_state, batch)

    return at
