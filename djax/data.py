"""Splits the samples of a data set among workers, and makes their batches.

Decentralized learning is hard where the data of the workers differ. Papers make such
data from a common data set by its classes, and this module has their three splits:
:func:`iid`, :func:`dirichlet` and :func:`shards`. A split is a list that has the
indices of the samples of each worker. :func:`count_classes` and :func:`plot_classes`
show how different the workers' data are.

:func:`batches` turns a split into the batches of an epoch, in the form that the
function of :func:`djax.training.make_steps` takes. The order of a worker's samples
depends on seed, epoch and rank alone. A simulation, a mesh and processes of MPI
therefore see the same batches, and a run can be resumed at any epoch.

Everything here is computed by NumPy on the host.

Examples:
  >>> import djax, numpy as np
  >>> labels = np.arange(1000) % 10
  >>> data = {"image": np.zeros((1000, 8, 8)), "label": labels}
  >>> shares = djax.data.dirichlet(labels, 4, alpha=0.1)
  >>> communicator = djax.communicators.simulated(4)
  >>> batches = djax.data.batches(data, shares, communicator, 32, epoch=0)
  >>> batches["image"].shape  # [workers, steps, batch, ...]
  (4, 7, 32, 8, 8)
"""

# This file is longer than 300 lines because half of it describes arguments and results,
# and shows examples.

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ._arguments import of_the_run
from ._arrays.checks import check_arrays, named_leaves
from ._interfaces import Communicator, PyTree
from ._values import check_integer, describe, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["batches", "count_classes", "dirichlet", "iid", "plot_classes", "shards"]
__dir__ = __all__.copy  # For dir() and completion.

# With a larger alpha all proportions would be equal up to rounding.
_MAX_ALPHA = 1e12
_MAX_DRAWS = 10_000
_GROUP = 10  # Workers among which proportions are drawn together.
# A picture of more workers would be taller than a page: it has no numbers, and names
# only some of the workers.
_MOST_NUMBERED = 32


def iid(labels: np.ndarray, workers: int, *, seed: int = 0) -> list[np.ndarray]:
    """Splits samples at random, so that the workers' data hardly differ.

    Args:
      labels: the class of each sample, `[samples]`. Only their number is used.
      workers: number of workers.
      seed: seed of the random order.

    Returns:
      The indices of each worker's samples, a list of `int64[share]`. They are disjoint
      and cover all samples. Sizes differ by at most one.

    Raises:
      ValueError: if `labels` is not one-dimensional, there are more workers than
        samples, or an argument is out of range.

    Examples:
      >>> import djax, numpy as np
      >>> shares = djax.data.iid(np.arange(10) % 2, 3)
      >>> [len(share) for share in shares]
      [4, 3, 3]
    """
    labels, workers, rng = _prepare("iid", labels, workers, seed)
    return np.array_split(rng.permutation(len(labels)), workers)


def dirichlet(
    labels: np.ndarray, workers: int, alpha: float, *, seed: int = 0
) -> list[np.ndarray]:
    r"""Draws each class's division among the workers from :math:`Dir(\alpha)`.

    This is the protocol of the RelaySGD experiments. The smaller :math:`\alpha`, the
    fewer classes a worker holds. Workers are treated in groups of ten. In a group, the
    proportions of a class are set to zero for workers that already hold their fair
    share of samples. All proportions are drawn again until each worker holds at least
    half of its fair share. In the end the workers' lists are joined and cut into equal
    parts, so that sizes differ by at most one. Cutting makes the classes of workers
    slightly less different than :math:`\alpha` says.

    Args:
      labels: the class of each sample, `[samples]`.
      workers: number of workers.
      alpha: :math:`\alpha > 0`. With 0.1 most samples of a worker are of a few classes;
        with 100 all workers have about the same share of each class.
      seed: seed of the draws.

    Returns:
      The indices of each worker's samples, a list of `int64[share]`. They are disjoint
      and cover all samples. Sizes differ by at most one.

    Raises:
      ValueError: if `labels` is not one-dimensional, there are more workers than
        samples, an argument is out of range, or `alpha` is so small that no draw
        divides the samples evenly.

    Examples:
      >>> import djax, numpy as np
      >>> labels = np.arange(1000) % 10
      >>> shares = djax.data.dirichlet(labels, 4, 0.1)
      >>> djax.data.count_classes(labels, shares)[0].tolist()  # of the first worker
      [1, 0, 10, 16, 0, 65, 58, 0, 0, 100]

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    labels, workers, rng = _prepare("dirichlet", labels, workers, seed)
    if not (is_number(alpha) and alpha > 0):
        raise ValueError(
            f"dirichlet: alpha must be positive, got {alpha!r}; the smaller it is, the "
            "more the workers' classes differ."
        )
    if not alpha < _MAX_ALPHA:
        raise ValueError(
            f"dirichlet: with alpha {alpha} all workers would have the same share of "
            "each class; use iid, which is the limit of large alpha."
        )
    groups = [min(_GROUP, workers - start) for start in range(0, workers, _GROUP)]
    ends = np.cumsum(groups)[:-1] * len(labels) // workers
    parts = np.split(rng.permutation(len(labels)), ends)
    shares = [
        share
        for part, size in zip(parts, groups, strict=True)
        for share in _dirichlet_group(labels, part, size, rng, alpha)
    ]
    return np.array_split(np.concatenate(shares), workers)


def _dirichlet_group(
    labels: np.ndarray,
    part: np.ndarray,
    workers: int,
    rng: np.random.Generator,
    alpha: float,
) -> list[np.ndarray]:
    """Divides the samples of `part` among the workers of a group."""
    fair = len(part) / workers
    classes = [part[labels[part] == c] for c in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        shares: list[list[np.ndarray]] = [[] for _ in range(workers)]
        for members in classes:
            held = np.asarray([sum(map(len, share)) for share in shares])
            proportions = rng.dirichlet(np.full(workers, alpha)) * (held < fair)
            if not proportions.sum() > 0:  # All the class went to workers with enough.
                break
            ends = np.cumsum(proportions / proportions.sum()) * len(members)
            pieces = np.split(members, ends[:-1].astype(int))
            for share, piece in zip(shares, pieces, strict=True):
                share.append(piece)
        else:
            joined = [np.concatenate(share) for share in shares]
            if min(map(len, joined)) >= int(fair / 2):
                return joined
    raise ValueError(
        f"dirichlet: no draw with alpha {alpha} gave each of {workers} workers half of "
        f"{fair:.0f} samples in {_MAX_DRAWS} draws; use a larger alpha or fewer "
        "workers."
    )


def shards(
    labels: np.ndarray, workers: int, per_worker: int, *, seed: int = 0
) -> list[np.ndarray]:
    """Sorts samples by class, cuts them into shards, and deals out the shards.

    A worker then holds about `per_worker` classes.

    Args:
      labels: the class of each sample, `[samples]`.
      workers: number of workers.
      per_worker: number of shards that each worker gets.
      seed: seed of the order in which shards are dealt out.

    Returns:
      The indices of each worker's samples, a list of `int64[share]`. They are disjoint
      and cover all samples. Sizes differ by at most `per_worker`.

    Raises:
      ValueError: if `labels` is not one-dimensional, there are more workers or shards
        than samples, or an argument is out of range.

    Examples:
      >>> import djax, numpy as np
      >>> labels = np.arange(1000) % 10
      >>> shares = djax.data.shards(labels, 5, 2)
      >>> djax.data.count_classes(labels, shares)[0].tolist()  # of the first worker
      [0, 0, 0, 0, 100, 0, 100, 0, 0, 0]

    References:
      McMahan et al., `Communication-Efficient Learning of Deep Networks from
      Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017
    """
    labels, workers, rng = _prepare("shards", labels, workers, seed)
    per_worker = check_integer(per_worker, "shards: per_worker", minimum=0)
    if not 1 <= per_worker <= len(labels) // workers:
        raise ValueError(
            f"shards: {workers} workers need {workers} x {per_worker} shards of "
            f"{len(labels)} samples; use from 1 to {len(labels) // workers} shards a "
            "worker."
        )
    by_class = np.argsort(labels, kind="stable")
    pieces = np.array_split(by_class, workers * per_worker)
    hands = rng.permutation(len(pieces)).reshape(workers, per_worker)
    return [np.concatenate([pieces[i] for i in hand]) for hand in hands]


def count_classes(labels: np.ndarray, shares: Sequence[np.ndarray]) -> np.ndarray:
    """Counts how many samples of each class each worker holds.

    Args:
      labels: the class of each sample, `[samples]`.
      shares: the indices of each worker's samples, as :func:`dirichlet` returns them.

    Returns:
      `int64[workers, classes]`. The columns are the classes in ascending order, as
      `numpy.unique(labels)` lists them.

    Raises:
      ValueError: if `labels` is not one-dimensional, or `shares` is not a list of
        arrays of indices of samples.

    Examples:
      >>> import djax, numpy as np
      >>> labels = np.asarray([0, 0, 1, 2, 2, 2])
      >>> djax.data.count_classes(labels, [np.asarray([0, 2]), np.asarray([1, 3, 4])])
      array([[1, 1, 0],
             [1, 0, 2]])
    """
    labels = _check_labels("count_classes", labels)
    shares = _check_shares("count_classes", shares, len(labels))
    classes, numbers = np.unique(labels, return_inverse=True)
    counts = [np.bincount(numbers[share], minlength=len(classes)) for share in shares]
    return np.asarray(counts)


def plot_classes(
    labels: np.ndarray, shares: Sequence[np.ndarray], ax: "Axes | None" = None
) -> "Axes":
    """Draws with matplotlib how many samples of each class each worker holds.

    Args:
      labels: the class of each sample, `[samples]`.
      shares: the indices of each worker's samples, as :func:`dirichlet` returns them.
      ax: where to draw; by default new axes.

    Returns:
      The axes.

    Raises:
      ValueError: if `labels` is not one-dimensional, or `shares` is not a list of
        arrays of indices of samples.

    Examples:
      >>> import djax, numpy as np
      >>> labels = np.arange(1000) % 10
      >>> ax = djax.data.plot_classes(labels, djax.data.dirichlet(labels, 4, 0.1))
      >>> ax.get_ylabel()
      'worker'
    """
    counts = count_classes(labels, shares)
    workers, classes = counts.shape
    if ax is None:
        import matplotlib.pyplot as plt

        size = (2 + 0.45 * classes, 1.5 + min(0.35 * workers, 12))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(counts, cmap="Blues", aspect="auto")
    if workers <= _MOST_NUMBERED:
        for (worker, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "black"
            style = {"ha": "center", "va": "center", "size": 8, "color": color}
            ax.text(column, worker, str(count or "·"), **style)
    ax.set(xlabel="class", ylabel="worker")
    ax.set_xticks(range(classes), list(map(str, np.unique(np.asarray(labels)))))
    ax.set_yticks(range(0, workers, math.ceil(workers / _MOST_NUMBERED)))
    ax.figure.colorbar(image, ax=ax, label="samples")
    return ax


def batches(
    data: PyTree,
    shares: Sequence[np.ndarray],
    communicator: Communicator,
    batch_size: int,
    *,
    epoch: int,
    seed: int = 0,
) -> PyTree:
    """Makes the batches of an epoch for the local workers.

    Each worker shuffles its own samples anew in each epoch. All workers make the same
    number of steps: an epoch has as many as the smallest share has whole batches.
    Samples that are left over come in another epoch, since the order changes.

    The order of the samples of the worker `rank` is
    `numpy.random.default_rng((seed, epoch + 1, rank)).permutation(shares[rank])`.

    Args:
      data: a tree of arrays `[samples, ...]`, of all samples of all workers.
      shares: the indices of each worker's samples, as :func:`dirichlet` returns them.
      communicator: where the workers live. Only the batches of its `local_ranks` are
        made.
      batch_size: number of samples of a worker in one step.
      epoch: number of the epoch, counted from 0.
      seed: seed of the orders.

    Returns:
      A tree like `data`, whose leaves are NumPy arrays `[local workers, steps,
      batch_size, ...]`. The function that :func:`djax.training.make_steps` returns
      takes this tree.

    Raises:
      TypeError: if `communicator` is not a communicator, or a leaf is not an array.
      ValueError: if the number of shares is not the number of workers, `batch_size` is
        larger than the smallest share, the leaves have different numbers of samples,
        an index is not that of a sample, or an argument is out of range.

    Examples:
      >>> import djax, numpy as np
      >>> x = np.arange(10.0)
      >>> shares = [np.asarray([0, 1, 2, 3]), np.asarray([4, 5, 6, 7, 8, 9])]
      >>> communicator = djax.communicators.simulated(2)
      >>> batches = djax.data.batches({"x": x}, shares, communicator, 2, epoch=0)
      >>> batches["x"].shape  # [workers, steps, batch]
      (2, 2, 2)
      >>> np.sort(batches["x"][0].ravel()).tolist()
      [0.0, 1.0, 2.0, 3.0]
    """
    communicator = of_the_run("batches", communicator)
    shares = _check_shares("batches", shares, _count_samples(data))
    if len(shares) != communicator.size:
        raise ValueError(
            f"batches: there are {len(shares)} shares, but the communicator has "
            f"{communicator.size} workers; split the samples among as many workers."
        )
    batch_size = check_integer(batch_size, "batches: batch_size")
    epoch = check_integer(epoch, "batches: epoch", minimum=0)
    seed = check_integer(seed, "batches: seed", minimum=0)
    smallest = min(map(len, shares))
    if batch_size > smallest:
        raise ValueError(
            f"batches: batch_size {batch_size} is larger than the smallest share, of "
            f"{smallest} samples; use from 1 to {smallest}, or fewer workers."
        )
    steps = smallest // batch_size

    def order(rank):
        rng = np.random.default_rng((seed, epoch + 1, rank))
        return rng.permutation(shares[rank])[: steps * batch_size]

    chosen = np.stack([order(rank) for rank in communicator.local_ranks])
    chosen = chosen.reshape(-1, steps, batch_size)
    return jax.tree.map(lambda x: np.asarray(x)[chosen], data)


def _prepare(
    name: str, labels: Any, workers: Any, seed: Any
) -> tuple[np.ndarray, int, np.random.Generator]:
    """Returns the checked arguments of a split, and a generator of random numbers."""
    labels = _check_labels(name, labels)
    workers = check_integer(workers, f"{name}: workers")
    if workers > len(labels):
        raise ValueError(
            f"{name}: {workers} workers cannot share {len(labels)} samples; use at "
            f"most {len(labels)} workers."
        )
    seed = check_integer(seed, f"{name}: seed", minimum=0)
    return labels, workers, np.random.default_rng(seed)


def _check_labels(name: str, labels: Any) -> np.ndarray:
    """Returns the labels as an array, or raises unless each sample has one class."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{name}: labels must be one-dimensional, the class of each sample, got an "
            f"array of shape {labels.shape}; of one-hot labels pass labels.argmax(-1)."
        )
    return labels


def _check_shares(name: str, shares: Any, samples: int) -> list[np.ndarray]:
    """Returns the shares as arrays, or raises unless they are indices of samples."""
    try:
        shares = [np.asarray(share) for share in shares]
    except TypeError as error:
        raise ValueError(
            f"{name}: shares must be a list of the indices of each worker's samples, "
            f"as djax.data.iid returns it, got {describe(shares)}."
        ) from error
    if not shares:
        raise ValueError(f"{name}: shares is empty; it needs one share a worker.")
    for rank, share in enumerate(shares):
        if share.ndim != 1 or (len(share) and share.dtype.kind not in "iu"):
            raise ValueError(
                f"{name}: shares[{rank}] must be a one-dimensional array of indices, "
                f"got one of shape {share.shape} and dtype {share.dtype}."
            )
        if len(share) and not (0 <= share.min() and share.max() < samples):
            wrong = share.min() if share.min() < 0 else share.max()
            raise ValueError(
                f"{name}: shares[{rank}] contains the index {wrong}, but there are "
                f"{samples} samples; split the labels of these samples."
            )
    return [share.astype(np.int64) for share in shares]


def _count_samples(data: PyTree) -> int:
    """Returns the length of the leaves of `data`, or raises unless it is the same."""
    check_arrays("batches", data, what="data")
    lengths = {path: np.shape(x)[:1] for path, x in named_leaves(data)}
    if len(set(lengths.values())) == 1 and () not in lengths.values():
        return next(iter(lengths.values()))[0]
    found = ", ".join(
        f"data{path} has {shape[0] if shape else 'no axis of'} samples"
        for path, shape in lengths.items()
    )
    raise ValueError(
        "batches: the leaves of data need a leading axis of samples, of the same "
        f"length; {found or 'data has no leaves'}."
    )
