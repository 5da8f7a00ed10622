"""Decides which samples each worker uses in each step.

The order of samples depends on nothing but seed, epoch and worker. Therefore a run can
be resumed at any step, and all processes agree without communication. The grain library
is not used here for two reasons: it shuffles by its own hash, which would change all
committed results, and importing it takes three seconds, as long as some trainings here.
"""

import functools

import numpy as np

from .. import partition
from ..errors import UsageError
from ._base import Corpus


class Sampler:
    """Divides labelled samples among workers, and orders them into batches.

    There are three kinds of `split`:

    * any split of :func:`experiments.lib.partition.split`: each worker keeps its share,
      and shuffles it before each pass;
    * `reshuffled`: all samples are dealt out again in each epoch;
    * `whole`: each worker has all samples, in an order of its own. An epoch ends when
      the workers together have used as many samples as the data set has.

    Batches that would be incomplete are left out. Steps and passes over the samples are
    counted from 0, over the whole training. The `shares` are the indices of each
    worker's samples in the first epoch.
    """

    def __init__(
        self, labels: np.ndarray, workers: int, split: str, batch_size: int, seed: int
    ):
        """Divides the samples, whose classes are `labels`, `int[samples]`."""
        self._samples, self._workers = len(labels), workers
        self._batch_size, self._seed = batch_size, seed
        self._fixed = split != "reshuffled"
        if not self._fixed:
            self.shares = [self._order(0, rank) for rank in range(workers)]
        elif split == "whole":
            self.shares = [np.arange(len(labels))] * workers
        else:
            self.shares = partition.split(labels, workers, split, seed)
        smallest = min(map(len, self.shares))
        if not 1 <= batch_size <= smallest:
            raise UsageError(
                f"--batch-size {batch_size} does not fit the smallest share of "
                f"{smallest} samples; use from 1 to {smallest}, or fewer workers."
            )
        self._pass = smallest // batch_size
        whole = split == "whole"
        self.steps_per_epoch = max(1, self._pass // workers) if whole else self._pass
        # Keeps the current pass of each worker and the next one.
        self._kept_order = functools.lru_cache(2 * workers)(self._order)

    def indices(self, rank: int, start: int, stop: int) -> np.ndarray:
        """Returns a worker's samples in steps, `int[stop - start, batch_size]`."""
        size, parts = self._batch_size, []
        for number, first, last in self.passes(start, stop):
            order, begin = self._kept_order(number, rank), number * self._pass
            parts.append(order[(first - begin) * size : (last - begin) * size])
        return np.concatenate(parts).reshape(-1, size)

    def passes(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Divides the steps from `start` to `stop - 1` at the ends of passes.

        The result has `(number, start, stop)` for each pass: its number, and its steps.
        """
        size = self._pass
        numbers = range(start // size, (stop - 1) // size + 1)
        return [(i, max(start, i * size), min(stop, (i + 1) * size)) for i in numbers]

    def _order(self, number: int, rank: int) -> np.ndarray:
        """Returns a worker's samples in their order in a pass."""
        if not self._fixed:  # One permutation deals the samples to all workers.
            rng = np.random.default_rng((self._seed, number + 1))
            return np.array_split(rng.permutation(self._samples), self._workers)[rank]
        rng = np.random.default_rng((self._seed, number + 1, rank))
        return rng.permutation(self.shares[rank])


class TextSampler:
    """Divides a text among workers, and cuts each worker's part into batches.

    With the split `contiguous`, each worker gets a consecutive part of the text; `iid`
    deals out the documents at random. A worker's part is laid out in `batch_size` rows
    of consecutive tokens. Each step reads the next `length` tokens of all rows, so that
    the state of a recurrent network can be carried from step to step.
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
            parts = np.split(text, documents[1:-1])
            text = np.concatenate([parts[i] for i in order])
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
        """Returns a worker's tokens in the steps from `start` to `stop - 1`.

        They are `tokens`, `int32[stop - start, batch_size, length + 1]`, where the last
        token of a row is again the first one of the next step; and `first`,
        `bool[stop - start]`, whether a step begins a pass over the text.
        """
        steps = np.arange(start, stop) % self.steps_per_epoch
        columns = steps[:, None] * self._length + np.arange(self._length + 1)
        tokens = self._rows[rank][:, columns]  # [batch, steps, length + 1]
        return {"tokens": np.moveaxis(tokens, 1, 0), "first": steps == 0}
