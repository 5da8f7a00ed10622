"""Which samples each step of each worker takes.

Orders are functions of seed, epoch and worker alone, so that a run can be resumed at
any step, and all processes agree without talking. The grain library is not used for
this, since it shuffles by a hash of its own, which would change all committed results,
and takes three seconds to import, as long as some of the trainings here.
"""

import functools

import numpy as np

from .. import partition
from ..errors import UsageError
from ._base import Corpus


class Sampler:
    """The samples of all steps.

    Args:
      labels: `int[samples]`, their classes.
      workers: how many.
      split: which samples each holds: any of
        :func:`experiments.lib.partition.split`, each worker's own in an order that
        is new in every pass over them; `reshuffled`, where all samples are dealt out
        anew in each epoch; or `whole`, where each worker has all of them, in an order
        of its own, and an epoch is over when the workers together have seen as many as
        there are.
      batch_size: samples of a worker's step; incomplete batches are left out.
      seed: of the split and the orders.

    Attributes:
      steps_per_epoch: how many steps an epoch has.
      class_counts: `int[workers, classes]`, samples that each worker holds; those of
        `reshuffled` in the first epoch.

    Raises:
      UsageError: if the split is unknown, or a worker has no whole batch.
    """

    def __init__(
        self, labels: np.ndarray, workers: int, split: str, batch_size: int, seed: int
    ):
        """Divides the samples."""
        self._samples, self._workers = len(labels), workers
        self._batch_size, self._seed = batch_size, seed
        self._shares: partition.Shares | None = None
        if split == "reshuffled":
            shares = [self._order(1, rank) for rank in range(workers)]
        elif split == "whole":
            self._shares = shares = [np.arange(len(labels))] * workers
        else:
            self._shares = shares = partition.split(labels, workers, split, seed)
        smallest = min(map(len, shares))
        if not 1 <= batch_size <= smallest:
            raise UsageError(
                f"--batch-size {batch_size} does not fit the smallest share of "
                f"{smallest} samples; use from 1 to {smallest}, or fewer workers."
            )
        self._pass = smallest // batch_size
        whole = split == "whole"
        self.steps_per_epoch = max(1, self._pass // workers) if whole else self._pass
        self.class_counts = partition.count_classes(labels, shares)
        # A pass of each worker, and the next.
        self._kept_batches = functools.lru_cache(2 * workers)(self._batches)

    def indices(self, rank: int, start: int, stop: int) -> np.ndarray:
        """The samples of some steps.

        Args:
          rank: the worker.
          start: the first step, counted from 0 over the whole training.
          stop: the step after the last one.

        Returns:
          `int[stop - start, batch_size]`.
        """
        return np.concatenate(
            [
                self._kept_batches(i + 1, rank)[first - i * self._pass :][
                    : last - first
                ]
                for i, first, last in self.passes(start, stop)
            ]
        )

    def passes(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Cuts steps where passes over the samples end.

        Args:
          start: the first step.
          stop: the step after the last one.

        Returns:
          `(number, start, stop)` of each pass.
        """
        numbers = range(start // self._pass, (stop - 1) // self._pass + 1)
        return [
            (i, max(start, i * self._pass), min(stop, (i + 1) * self._pass))
            for i in numbers
        ]

    def _batches(self, number: int, rank: int) -> np.ndarray:
        """A worker's batches in a pass, `int[steps, batch_size]`."""
        used = self._order(number, rank)[: self._pass * self._batch_size]
        return used.reshape(self._pass, self._batch_size)

    def _order(self, number: int, rank: int) -> np.ndarray:
        """The samples of a worker in a pass, counted from 1, in their order."""
        if self._shares is None:  # Dealt out anew, by one permutation for all.
            rng = np.random.default_rng((self._seed, number))
            return np.array_split(rng.permutation(self._samples), self._workers)[rank]
        rng = np.random.default_rng((self._seed, number, rank))
        return rng.permutation(self._shares[rank])


class TextSampler:
    """The parts of a text that all steps take.

    A worker's part of the text is laid out in rows of consecutive tokens, which its
    steps go along together, so that the state of a recurrent network can be carried on.

    Args:
      corpus: the text.
      workers: how many.
      split: `contiguous`, consecutive parts of the text; or `iid`, its documents dealt
        out at random.
      batch_size: rows.
      length: tokens of a row in a step.
      seed: of the split.

    Attributes:
      steps_per_epoch: how many steps an epoch has.

    Raises:
      UsageError: if the split is unknown, or the text too short.
    """

    def __init__(
        self,
        corpus: Corpus,
        workers: int,
        split: str,
        batch_size: int,
        length: int,
        seed: int,
    ):
        """Divides the text."""
        text, documents = corpus.train, corpus.documents
        if split == "iid":
            order = np.random.default_rng(seed).permutation(len(documents) - 1)
            text = np.concatenate(
                [text[documents[i] : documents[i + 1]] for i in order]
            )
        elif split != "contiguous":
            raise UsageError(
                f"--split {split!r} is not for texts; write contiguous or iid."
            )
        if batch_size < 1:
            raise UsageError(f"--batch-size {batch_size} must be at least 1.")
        share = len(text) // workers
        row = share // batch_size
        self.steps_per_epoch, self._length = (row - 1) // length, length
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"--batch-size {batch_size} rows of {length + 1} tokens do not fit a "
                f"worker's part of {share}; use fewer or shorter rows, or fewer "
                "workers."
            )
        used = text[: workers * share].reshape(workers, share)[:, : batch_size * row]
        self._rows = used.reshape(workers, batch_size, row)

    def read(self, rank: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """The tokens of some steps.

        Args:
          rank: the worker.
          start: the first step, counted from 0 over the whole training.
          stop: the step after the last one.

        Returns:
          `tokens`, `int32[stop - start, batch_size, length + 1]`, whose last are the
          next step's first; and `first`, `bool[stop - start]`, whether a step is the
          first of a pass over the text.
        """
        steps = np.arange(start, stop) % self.steps_per_epoch
        columns = steps[:, None] * self._length + np.arange(self._length + 1)
        tokens = self._rows[rank][:, columns]  # [batch, steps, length + 1]
        return {"tokens": np.moveaxis(tokens, 1, 0), "first": steps == 0}
