"""Reads the split of samples among workers from the command line.

The command line names a split: `iid`, `dirichlet:ALPHA` (the smaller ALPHA, the more
the workers' classes differ) or `shards:K` (each worker holds about K classes). The
splits themselves are those of :mod:`djax.data`.
"""

from collections.abc import Callable

import numpy as np

from djax import data

from .errors import UsageError, lookup

Shares = list[np.ndarray]
"""Indices of the samples of each worker. They are disjoint and cover all samples."""

_SPLITS: dict[str, tuple[Callable[..., Shares], type | None]] = {
    "iid": (data.iid, None),
    "dirichlet": (data.dirichlet, float),
    "shards": (data.shards, int),
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
    try:
        return make(labels, workers, *values, seed=seed)
    except ValueError as error:
        advice = str(error).removeprefix(f"{name}: ")
        advice = advice.replace("use iid", "use --split iid")
        raise UsageError(f"--split {spec}: {advice}") from error
