"""The main thread of a worker, which computes gradients one after another."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from djax._interfaces import PyTree
from djax.training import Checkpointer, NonFinite, NonFiniteError

from .._finite import describe
from ._averager import Averager
from ._gradient import Gradient
from ._groups import Alone
from ._history import History
from ._members import Members
from ._model import Model


@dataclass(eq=False)
class Worker:
    """Computes gradients until the run is over, while the averager averages.

    Args:
      compute: computes one gradient.
      model: the model of this worker.
      averager: the averaging thread of this worker.
      members: this worker's view of all workers.
      nonfinite: what happens to gradients that are not finite.
      saver: saves this worker; None if the run has no checkpoints.
      progress: a function that is called after each gradient of this worker, with the
        number of gradients of all workers.
      stop: a function that is called after each gradient of this worker, and returns
        whether the run has to end now.
      group: the members that compute each gradient together.
    """

    _compute: Gradient
    _model: Model
    _averager: Averager
    _members: Members
    _nonfinite: NonFinite
    _saver: Checkpointer | None
    _progress: Callable[[int], object] | None
    _stop: Callable[[], bool] | None
    _group: Alone
    _measured: History = field(default_factory=History)

    def train(self, model_state: PyTree) -> tuple[PyTree, PyTree]:
        """Computes gradients until the run is over.

        Returns:
          The last model state, and the metrics of all gradients, leaves
          `[1, gradients, ...]`.

        Raises:
          djax.asynchronous.NonFiniteError: if a gradient or model is not finite, and
            `nonfinite` is "raise".
        """
        while self._goes_on(model_state):
            model_state = self._step(model_state)
            if self._progress is not None:
                self._progress(self._members.gradients)
            if self._stop is not None and self._stop():
                self._averager.stop()
        return model_state, self._measured.stacked()

    def _goes_on(self, model_state: PyTree) -> bool:
        """Whether the run goes on; saves this worker, if that is due.

        The members of a group decide together, so that none waits for a gradient that
        another one does not compute.
        """
        averager, saver = self._averager, self._saver
        over, failed, due = self._group.any(
            averager.enough(), averager.error is not None, saver and saver.due
        )
        if failed:
            averager.check(wait=True)
        if due and not over:
            averager.begin("saving a checkpoint")
            self.save(model_state)
        return not over

    def _step(self, model_state: PyTree) -> PyTree:
        """Computes one gradient and applies it; returns the next model state."""
        averager, model = self._averager, self._model
        number = model.time.finished + 1
        averager.begin(f"loading the batch of gradient {number}")
        model.time.begin()
        batch = self._compute.batch(number - 1)
        averager.begin(f"computing gradient {number}")
        began = averager.record.now()
        params, before = model.snapshot(settled=averager.waits)
        grads, new_model_state, metrics = self._compute(params, model_state, *batch)
        self._measured.append(metrics)
        after = model.update(grads, self._members.gradients)
        averager.record.gradient(began, after - before)
        finite = ~self._group.any(*np.logical_not(model.updated))
        if not finite.all():
            averager.record.not_finite(number)
            if self._nonfinite == "raise":
                rank = self._members.rank
                text = f"asynchronous.run: {describe(rank, number, finite)}"
                raise NonFiniteError(text, (rank,), number - 1)
        averager.begin(f"waiting for averagings after gradient {number}")
        averager.step()
        skipped = self._nonfinite == "skip" and not finite.all()
        return model_state if skipped else new_model_state

    def save(self, model_state: PyTree) -> None:
        """Starts to write a checkpoint, unless the run has no checkpoints."""
        if self._saver is None:
            return
        with self._model.lock:
            finished, (params, state) = self._model.time.finished, self._model.settle()
        tree = params, state, model_state
        self._group.tidy(self._saver)
        self._saver.save(finished, tree, sorted(self._members.lost))
