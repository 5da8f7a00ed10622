"""Splits the samples of a data set among workers.

The command line names a split: `iid`, `dirichlet:ALPHA` (the smaller ALPHA, the more
the workers' classes differ) or `shards:K` (each worker holds about K classes). Each
split is a function of the samples' classes, `int[samples]`, the number of workers, a
source of randomness, and the number after the colon.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .errors import UsageError, lookup

Shares = list[np.ndarray]
"""Indices of the samples of each worker. They are disjoint and cover all samples."""
MAX_DRAWS = 10_000
MAX_ALPHA = 1e12
"""Largest alpha; with a larger one all proportions would be equal up to rounding."""


def iid(labels: np.ndarray, workers: int, rng: np.random.Generator) -> Shares:
    """Shuffles the samples and deals them out evenly; sizes differ by at most one."""
    return np.array_split(rng.permutation(len(labels)), workers)


def dirichlet(
    labels: np.ndarray, workers: int, rng: np.random.Generator, alpha: float
) -> Shares:
    r"""Draws each class's division among the workers from :math:`Dir(\alpha)`.

    This is the protocol of the RelaySGD experiments. The smaller :math:`\alpha`, the
    fewer classes a worker holds. Workers are treated in groups of ten. In a group, the
    proportions of a class are set to zero for workers that already hold their fair
    share of samples. All proportions are drawn again until each worker holds at least
    half of its fair share. In the end the workers' lists are joined and cut into equal
    parts, so that sizes differ by at most one. Cutting makes the classes of workers
    slightly less different than :math:`\alpha` says.

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    if not alpha > 0:
        raise UsageError(f"--split dirichlet:{alpha}: alpha must be positive.")
    if not alpha < MAX_ALPHA:
        raise UsageError(
            f"--split dirichlet:{alpha}: with so large an alpha all workers have the "
            "same share of each class; use --split iid, which is its limit."
        )
    groups = [min(10, workers - start) for start in range(0, workers, 10)]
    ends = np.cumsum(groups)[:-1] * len(labels) // workers
    parts = np.split(rng.permutation(len(labels)), ends)
    shares = [
        share
        for part, size in zip(parts, groups, strict=True)
        for share in _dirichlet_group(labels, part, size, rng, alpha)
    ]
    return np.array_split(np.concatenate(shares), workers)


def _dirichlet_group(labels, part, workers, rng, alpha) -> Shares:
    fair = len(part) / workers
    classes = [part[labels[part] == c] for c in np.unique(labels)]
    for _ in range(MAX_DRAWS):
        shares = [[] for _ in range(workers)]
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
            shares = [np.concatenate(share) for share in shares]
            if min(map(len, shares)) >= int(fair / 2):
                return shares
    raise UsageError(
        f"no Dirichlet split with alpha {alpha} gave each of {workers} workers half of "
        f"{fair:.0f} samples in {MAX_DRAWS} draws; use a larger alpha or fewer workers."
    )


def shards(
    labels: np.ndarray, workers: int, rng: np.random.Generator, per_worker: int
) -> Shares:
    """Sorts samples by class, cuts them into shards, and deals out the shards.

    Each worker gets `per_worker` shards. Sizes differ by at most `per_worker`.

    References:
      McMahan et al., `Communication-Efficient Learning of Deep Networks from
      Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017
    """
    if per_worker < 1 or per_worker * workers > len(labels):
        raise UsageError(
            f"--split shards:{per_worker}: {workers} workers need {workers} x "
            f"{per_worker} shards of {len(labels)} samples; use from 1 to "
            f"{len(labels) // workers}."
        )
    by_class = np.argsort(labels, kind="stable")
    pieces = np.array_split(by_class, workers * per_worker)
    hands = rng.permutation(len(pieces)).reshape(workers, per_worker)
    return [np.concatenate([pieces[i] for i in hand]) for hand in hands]


_SPLITS: dict[str, tuple[Callable[..., Shares], type | None]] = {
    "iid": (iid, None),
    "dirichlet": (dirichlet, float),
    "shards": (shards, int),
}
"""The function of each split, and the type of the number after the colon, if any."""


def split(labels: np.ndarray, workers: int, spec: str, seed: int) -> Shares:
    """Splits samples among workers, as in `iid`, `dirichlet:ALPHA` or `shards:K`.

    Examples:
      >>> labels = np.arange(1000) % 10
      >>> shares = split(labels, 4, "dirichlet:0.1", seed=0)
      >>> [len(share) for share in shares]
      [250, 250, 250, 250]
    """
    if workers > len(labels):
        raise UsageError(
            f"{workers} workers cannot share {len(labels)} samples; use at most "
            f"{len(labels)} workers."
        )
    name, _, value = spec.partition(":")
    lookup("--split", name, [*_SPLITS, "reshuffled", "whole"])
    make, kind = _SPLITS.get(name, (None, None))
    try:
        if make is None or (kind is None) != (not value):
            raise ValueError(spec)
        values = [kind(value)] if kind else []
    except ValueError:
        raise UsageError(
            f"cannot read --split {spec!r}; write iid, dirichlet:0.1, shards:2, "
            "reshuffled or whole."
        ) from None
    return make(labels, workers, np.random.default_rng(seed), *values)


def count_classes(labels: np.ndarray, shares: Sequence[np.ndarray]) -> np.ndarray:
    """Returns `int[workers, classes]`, how many samples of a class a worker holds."""
    classes = np.unique(labels)
    return np.asarray([[np.sum(labels[s] == c) for c in classes] for s in shares])


def plot_classes(counts: np.ndarray, title: str):
    """Plots how many samples of a class a worker holds, `int[workers, classes]`."""
    from matplotlib.figure import Figure

    workers, classes = counts.shape
    size = (2 + 0.45 * classes, 1.5 + min(0.35 * workers, 12))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts, cmap="Blues", aspect="auto")
    if workers <= 32:
        style = {"ha": "center", "va": "center", "size": 8}
        for (worker, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "black"
            axes.text(column, worker, str(count or "·"), color=color, **style)
    axes.set(xlabel="class", ylabel="worker", title=title, xticks=range(classes))
    axes.set_yticks(range(0, workers, math.ceil(workers / 32)))
    figure.colorbar(image, label="samples")
    return figure
