"""Values that remember the call that made them.

A transformation of optax holds functions that are created anew by each call. Therefore
no two transformations are equal, and none can be pickled. A value that remembers its
maker and the arguments can do better: it equals the result of an equal call, and it is
pickled as that call.
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
    """A tuple of functions that remembers its call; see :func:`by_its_call`."""

    _call: tuple[Callable[..., Any], Mapping[str, Any]] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the call, by name; empty if the call is not known."""
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
    """Makes the results of a function comparable, picklable and printable.

    Args:
      make: the function; it has neither `*args` nor `**kwargs`.
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
    """A hashable key that equal values share; None if there is no such key."""
    call = getattr(value, "_call", None)
    if call is None or any(isinstance(x, jax.Array) for x in call[1].values()):
        return None  # The values of traced arrays are not known.
    found = call[0], _frozen(call[1])
    try:
        hash(found)
    except TypeError:
        return None
    return found


def _frozen(value: Any) -> Any:
    """Converts lists, dictionaries and arrays among the arguments to tuples."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, Mapping):
        return tuple((key, _frozen(each)) for key, each in value.items())
    if type(value) in (list, tuple):
        return tuple(map(_frozen, value))
    return value


def _make_again(make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Repeats the call of a pickled value."""
    bound = inspect.BoundArguments(inspect.signature(make), dict(arguments))
    return make(*bound.args, **bound.kwargs)
