"""Checks that a mechanism is given a code of the class that it needs."""

from typing import Any

from djax._interfaces import Compressor
from djax._values import describe

# How to call each code of djax.compressors to make a contraction.
_CONTRACTIONS = {
    "identity": "identity()",
    "top_k": "top_k(0.01)",
    "random_k": "random_k(0.01)",
    "sign": "sign()",
    "low_rank": "low_rank(1)",
    "quantize": "quantize(4, unbiased=False)",
}
# How to call each code of djax.compressors to make an unbiased code.
_UNBIASED = {
    "identity": "identity()",
    "random_k": "random_k(0.5, unbiased=True)",
    "quantize": "quantize(8)",
}


def check_contraction(name: str, code: Any) -> None:
    """Raises unless a mechanism that needs a contraction may be given the code.

    Args:
      name: name of the mechanism, for errors.
      code: what the user passed as the code.

    Raises:
      TypeError: if the code is not a :class:`djax.Compressor`.
      ValueError: if the code is declared not to be a contraction.
    """
    check_compressor(name, code, _CONTRACTIONS)
    if getattr(code, "contraction", None) is False:
        raise ValueError(
            f"{name} needs a contraction, and {name_of(code)} is declared to be none: "
            "the models would diverge. Make the code with unbiased=False, as in "
            "compressors.quantize(4, unbiased=False), or use another such as "
            "compressors.top_k(0.01)."
        )


def check_unbiased(name: str, code: Any) -> None:
    """Raises unless a mechanism that needs an unbiased code may be given the code.

    Args:
      name: name of the mechanism, for errors.
      code: what the user passed as the code.

    Raises:
      TypeError: if the code is not a :class:`djax.Compressor`.
      ValueError: if the code is declared to be biased.
    """
    check_compressor(name, code, _UNBIASED)
    if getattr(code, "unbiased", None) is False:
        raise ValueError(
            f"{name} needs an unbiased code, and {name_of(code)} is declared to be "
            "biased: what the code leaves out would be lost. Use "
            "compressors.quantize(8), or random_k with unbiased=True; biased codes are "
            "for choco_gossip and deep_squeeze."
        )


def check_compressor(
    name: str, code: Any, calls: dict[str, str] = _CONTRACTIONS
) -> None:
    """Raises TypeError, which names the call that was meant, unless a value is a code.

    Args:
      name: name of the function that takes the code, for the error.
      code: what the user passed. Any object with the three functions of a
        :class:`djax.Compressor` will do.
      calls: how to make each code that the function can use, by its name.
    """
    parts = [getattr(code, part, None) for part in Compressor._fields[:3]]
    if not isinstance(code, type) and all(map(callable, parts)):
        return
    called = code if isinstance(code, str) else getattr(code, "__name__", None)
    fitting = calls["quantize"]
    if code is Compressor or isinstance(code, tuple):
        meant = "make one of its functions by Compressor(init, compress, decompress)"
    elif called in calls:
        meant = f"call compressors.{calls[called]}"
    elif called in _CONTRACTIONS:
        meant = f"compressors.{_CONTRACTIONS[called]} would be one, but a biased one: "
        meant += f"use an unbiased one such as compressors.{fitting}"
    else:
        meant = f"codes are made by calls such as compressors.{fitting}"
    raise TypeError(f"{name} needs a djax.Compressor, got {describe(code)}: {meant}.")


def name_of(code: Any) -> str:
    """The name of the function that made a code, or "the code" if there is none."""
    maker = getattr(code.compress, "__qualname__", "").split(".")[0]
    return maker if maker.isidentifier() else "the code"
