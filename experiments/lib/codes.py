"""Makes lossy codes of messages from their names and options on the command line."""

import inspect
from collections.abc import Mapping
from typing import Any

import djax

from .errors import UsageError, lookup
from .options import check_options

COMPRESSORS: dict[str, dict[str, Any]] = {
    "identity": {},
    "top_k": {"fraction": 0.1},
    "random_k": {"fraction": 0.1},
    "sign": {},
    "low_rank": {"rank": 1},
    "quantize": {"bits": 8},
}
"""The codes of :mod:`djax.compressors`, with their default options."""


def make_compressor(
    algorithm: str, name: str | None, given: Mapping[str, Any], *, unbiased: bool
) -> djax.Compressor:
    """Makes the code of an algorithm's messages.

    Args:
      name: name of the code; by default quantize if it must be unbiased, else top_k.
      given: options of the code; by default those of `COMPRESSORS`.
      unbiased: whether the algorithm needs an unbiased code; otherwise it needs a
        contraction.
    """
    name = name or ("quantize" if unbiased else "top_k")
    lookup("--compressor", name, COMPRESSORS)
    make = getattr(djax.compressors, name)
    parameters = inspect.signature(make).parameters
    known = COMPRESSORS[name]
    if given:  # Keep only the defaults of arguments that the code cannot do without.
        missing = inspect.Parameter.empty
        known = {k: v for k, v in known.items() if parameters[k].default is missing}
    if "unbiased" in parameters:
        known = {"unbiased": unbiased} | known
    what = f"--compressor-options of {name}"
    try:
        code = make(**check_options(what, make, {**known, **given}, given=0))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--compressor {name}: {error}") from error
    if unbiased and not code.unbiased:
        raise UsageError(
            f"--algorithm {algorithm} needs an unbiased code, which "
            f"--compressor {name} is not here: choose identity, quantize or random_k, "
            "and leave their option unbiased away."
        )
    if not unbiased and not code.contraction:
        raise UsageError(
            f"--algorithm {algorithm} needs a contraction, which --compressor "
            f"{name} is not with --compressor-options unbiased True: leave that option "
            "away."
        )
    return code
