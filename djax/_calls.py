"""Values that know by which call they were made.

The functions inside of an optax transformation are new in every call, so that no two
transformations are equal, and none can be pickled. A value that knows its maker and the
arguments is equal to what an equal call makes, and is pickled as that call.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
Made = TypeVar("Made", bound="ByItsCall")


class ByItsCall:
    """A tuple of functions that :func:`by_its_call` has made a value."""

    _call: tuple[Callable[..., Any], Mapping[str, Any]] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the call by name; empty if it is not known."""
        return {} if self._call is None else dict(self._call[1])

    def __repr__(self) -> str:
        if self._call is None:
            return super().__repr__()
        make, arguments = self._call
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{make.__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        mine, theirs = _comparable(self), _comparable(other)
        if mine is None or theirs is None:
            return super().__eq__(other)
        return mine == theirs

    def __hash__(self) -> int:
        mine = _comparable(self)
        return super().__hash__() if mine is None else hash(mine)

    def __copy__(self) -> "ByItsCall":
        return self

    def __deepcopy__(self, memo: Any) -> "ByItsCall":
        return self

    def __reduce__(self) -> Any:
        if self._call is None:
            return super().__reduce__()
        return _make_again, (self._call[0], self.arguments)


def by_its_call(make: Callable[P, Made]) -> Callable[P, Made]:
    """Lets what a function makes be compared, pickled and shown by its call.

    Args:
      make: takes arguments, none of them by `*args` or `**kwargs`.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> Made:
        made = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made._call = call, bound.arguments
        return made

    return call


def _comparable(value: Any) -> tuple[Any, ...] | None:
    """What equal values have in common; None for what cannot be compared so."""
    call = getattr(value, "_call", None)
    if call is None or any(isinstance(x, jax.Array) for x in call[1].values()):
        return None  # Arrays may be traced ones.
    found = call[0], _frozen(call[1])
    try:
        hash(found)
    except TypeError:
        return None
    return found


def _frozen(value: Any) -> Any:
    """Arguments that are lists, dictionaries or arrays, as something with a hash."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, Mapping):
        return tuple((key, _frozen(each)) for key, each in value.items())
    if type(value) in (list, tuple):
        return tuple(map(_frozen, value))
    return value


def _make_again(make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Makes what has been pickled by the same call."""
    positional, named = [], {}
    for key, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[key] = arguments[key]
        else:
            positional.append(arguments[key])
    return make(*positional, **named)
