"""Makes the codes of compressed messages from their names and options."""

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
    "dct": {"k": 32},
    "quantize": {"bits": 8},
}
"""The codes of :mod:`djax.compressors`, with their default options."""


def make_compressor(
    algorithm: str, name: str | None, given: Mapping[str, Any], *, unbiased: bool
) -> djax.Compressor:
    """Makes the code of messages, which is to be unbiased, or else a contraction.

    Args:
      algorithm: the name of the algorithm, for errors.
      name: the code; None is the default.
      given: arguments of the code.
      unbiased: whether the algorithm needs an unbiased code.
    """
    name = name or ("quantize" if unbiased else "top_k")
    lookup("--compressor", name, COMPRESSORS)
    make = getattr(djax.compressors, name)
    parameters = inspect.signature(make).parameters
    options = COMPRESSORS[name]
    if given:  # Keep only what the code cannot do without.
        missing = inspect.Parameter.empty
        options = {k: v for k, v in options.items() if parameters[k].default is missing}
    if "unbiased" in parameters:
        options = {"unbiased": unbiased} | options
    options = {**options, **given}
    what = f"--compressor-options of {name}"
    try:
        code = make(**check_options(what, make, options, given=0))
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
