"""Checks that a mechanism is given a code of the class that it needs."""

from typing import Any

from djax._interfaces import Compressor
from djax._values import describe

# For each class of codes: how to call each code of djax.compressors to make one.
_CALLS = {
    "contraction": {
        "identity": "identity()",
        "top_k": "top_k(0.01)",
        "random_k": "random_k(0.01)",
        "sign": "sign()",
        "low_rank": "low_rank(1)",
        "dct": "dct(32)",
        "quantize": "quantize(4, unbiased=False)",
    },
    "unbiased": {
        "identity": "identity()",
        "random_k": "random_k(0.5, unbiased=True)",
        "quantize": "quantize(8)",
    },
}
# For each class of codes: the error if a code is declared not to be one.
_REFUSALS = {
    "contraction": "{name} needs a contraction, and {code} is declared to be none: the "
    "models would diverge. Make the code with unbiased=False, as in "
    "compressors.quantize(4, unbiased=False), or use another such as "
    "compressors.top_k(0.01).",
    "unbiased": "{name} needs an unbiased code, and {code} is declared to be biased: "
    "what the code leaves out would be lost. Use compressors.quantize(8), or random_k "
    "with unbiased=True; biased codes are for choco_gossip and deep_squeeze.",
}


def check_class(name: str, code: Any, kind: str) -> None:
    """Raises unless a mechanism that needs a class of codes may be given the code.

    Args:
      name: name of the mechanism, for errors.
      code: what the user passed as the code.
      kind: the class, `"contraction"` or `"unbiased"`.

    Raises:
      TypeError: if the code is not a :class:`djax.Compressor`.
      ValueError: if the code is declared not to be of the class.
    """
    check_compressor(name, code, kind)
    if getattr(code, kind, None) is False:
        raise ValueError(_REFUSALS[kind].format(name=name, code=name_of(code)))


def check_compressor(name: str, code: Any, kind: str = "contraction") -> None:
    """Raises TypeError, which names the call that was meant, unless a value is a code.

    Args:
      name: name of the function that takes the code, for the error.
      code: what the user passed. Any object with the three functions of a
        :class:`djax.Compressor` will do.
      kind: the class of codes that the function can use.
    """
    parts = [getattr(code, part, None) for part in Compressor._fields[:3]]
    if not isinstance(code, type) and all(map(callable, parts)):
        return
    called = code if isinstance(code, str) else getattr(code, "__name__", None)
    calls, contractions = _CALLS[kind], _CALLS["contraction"]
    fitting = calls["quantize"]
    if code is Compressor or isinstance(code, tuple):
        meant = "make one of its functions by Compressor(init, compress, decompress)"
    elif called in calls:
        meant = f"call compressors.{calls[called]}"
    elif called in contractions:
        meant = f"compressors.{contractions[called]} would be one, but a biased one: "
        meant += f"use an unbiased one such as compressors.{fitting}"
    else:
        meant = f"codes are made by calls such as compressors.{fitting}"
    raise TypeError(f"{name} needs a djax.Compressor, got {describe(code)}: {meant}.")


def name_of(code: Any) -> str:
    """The name of the function that made a code, or "the code" if there is none."""
    maker = getattr(code.compress, "__qualname__", "").split(".")[0]
    return maker if maker.isidentifier() else "the code"
