"""Exchanges that travel while the main program goes on with other work.

A program of JAX that sends by mpi4jax waits for each message, since mpi4jax 0.9 has no
non-blocking operations. An exchange that may take several steps is therefore made by a
second thread, in a compiled program of its own that runs on the CPU. The thread makes
all exchanges of its process one after the other, in the order in which the main program
starts them, which is the same on all ranks. They travel over MPI communicators that
carry nothing else.

**A state hides nothing.** An exchange is a function of values that the main program
keeps in its state until it needs the result. If the exchange was started from exactly
these values, its result is used. Otherwise, for example after a restart from a
checkpoint, the exchange is made then. Both give the same result to the last bit.

**On GPUs**, what is sent and what is received is copied through the host's memory.
"""

import functools
import math
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxlib.xla_client import make_cpu_client

from djax import transport
from djax._arrays.keys import is_key
from djax._interfaces import PyTree

# What is traced within the context `background(True)` belongs to the second thread. The
# context is part of the keys of JAX's caches, so that a function of both threads is
# traced for each of them.
background = jax.make_user_context(default_value=False)

# How a leaf travels between the two threads: the kind of a PRNG key, or a dtype.
_Form = Any


class Exchange:
    """An exchange that a compiled program starts, and whose result it takes later.

    Made by :func:`prepare`, while the program is traced.
    """

    def __init__(self, program: Any, read: Callable[[Sequence[jax.Array]], PyTree]):
        """Starts nothing yet.

        Args:
          program: the traced exchange, a function of plain arrays.
          read: makes the result of the plain arrays that the program returns.
        """
        # Here, so that `import djax` need not wait for it.
        from jax.extend.core import jaxpr_as_fun

        self._results = [
            jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.out_avals
        ]
        self._call, self._read = jax.jit(jaxpr_as_fun(program)), read
        self._x64 = jax.enable_x64.value
        self._started: tuple[list[np.ndarray], Future] | None = None
        self._memory: list[np.ndarray] = []  # New memory costs more than copying does.

    def start(self, *args: PyTree) -> None:
        """Starts the exchange when the program comes here, and waits for nothing.

        Args:
          *args: the arguments of the function that :func:`prepare` was given.
        """
        io_callback(self._start, None, *_plain(args), ordered=True)

    def finish(self, *args: PyTree) -> PyTree:
        """Waits for the result of the exchange, and returns it.

        Args:
          *args: the same arguments.
        """
        given = _plain(args)
        return self._read(
            io_callback(self._finish, self._results, *given, ordered=True)
        )

    def _start(self, *args: jax.Array) -> None:
        if self._started is not None or not self._memory:
            # The last exchange was given up, and may still read from its memory.
            self._memory = [_memory(x.shape, x.dtype) for x in args]
        for mine, x in zip(self._memory, args, strict=True):
            np.copyto(mine, x)  # XLA will use the memory of `x` for other things.
        self._started = self._memory, _thread().submit(self._make, self._memory)

    def _finish(self, *args: jax.Array) -> list[np.ndarray]:
        values = list(map(np.asarray, args))
        started, self._started = self._started, None
        if started is None or not all(map(_same, values, started[0])):
            return _thread().submit(self._make, values).result()
        return started[1].result()

    def _make(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Makes the exchange; called in the second thread."""
        with jax.enable_x64(self._x64):
            results = self._call(*jax.device_put(values, _device()))
        return list(map(np.asarray, results))


def prepare(function: Callable[..., PyTree], *like: PyTree) -> Exchange | None:
    """Prepares an exchange of a program that is being traced.

    Args:
      function: the exchange, a pure function of trees of arrays.
      *like: traced arrays like its arguments.

    Returns:
      None if the program itself has to make the exchange. This is so if no program is
      being traced. It is also so if the function depends on other traced values than
      its arguments, since those may have changed when the result is needed.
    """
    leaves, treedef = jax.tree.flatten(like)
    if not any(isinstance(x, jax.core.Tracer) for x in leaves):
        return None
    forms, found = list(map(_form, leaves)), {}

    def plain(*args):
        given = map(_original, args, forms)
        results, found["treedef"] = jax.tree.flatten(
            function(*treedef.unflatten(given))
        )
        found["forms"] = list(map(_form, results))
        return _plain(results)

    def read(arrays):
        return found["treedef"].unflatten(map(_original, arrays, found["forms"]))

    with background(True):
        program = jax.make_jaxpr(plain)(*_plain(like))
    if any(isinstance(x, jax.core.Tracer) for x in program.consts):
        return None
    return Exchange(program, read)


def _form(leaf: jax.Array) -> _Form:
    return jax.random.key_impl(leaf) if is_key(leaf) else jnp.result_type(leaf)


def _is_wide(form: _Form) -> bool:
    """Whether JAX, in a thread that is not told of float64, would round a leaf."""
    return isinstance(form, np.dtype) and form.itemsize == 8 and form.kind != "c"


def _plain(tree: PyTree) -> list[jax.Array]:
    """Returns the leaves as arrays that all threads of JAX take for the same."""

    def of_leaf(x):
        if is_key(x):
            return jax.random.key_data(x)
        x = jnp.asarray(x)
        return jax.lax.bitcast_convert_type(x, jnp.uint32) if _is_wide(x.dtype) else x

    return list(map(of_leaf, jax.tree.leaves(tree)))


def _original(plain: jax.Array, form: _Form) -> jax.Array:
    """Inverts :func:`_plain` for one leaf."""
    if not isinstance(form, np.dtype):
        return jax.random.wrap_key_data(plain, impl=form)
    return jax.lax.bitcast_convert_type(plain, form) if _is_wide(form) else plain


def _memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array that a program of JAX can read without copying it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return transport.aligned(size).view(dtype).reshape(shape)


def _same(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype have the same bits."""
    some, others = map(transport.as_bytes, (some, others))
    whole = some.size // 8 * 8
    return all(
        np.array_equal(a, b)
        for a, b in (
            (some[:whole].view(np.uint64), others[:whole].view(np.uint64)),
            (some[whole:], others[whole:]),
        )
    )


class _Thread:
    """A thread that does what it is given, in the order in which it was given it."""

    def __init__(self):
        """Starts the thread, and has its work finished before MPI ends."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name="djax background", daemon=True
        )
        self._thread.start()
        transport.before_the_end(self._finish)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Returns what will be the result of a function, or its exception."""
        future = Future()

        def call():
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        self._work.put(call)
        return future

    def _run(self) -> None:
        while (call := self._work.get()) is not None:
            call()

    def _finish(self, seconds: float) -> bool:
        """Does what is left, and returns whether that took less than some seconds."""
        self._work.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()


@functools.cache
def _thread() -> _Thread:
    return _Thread()


@functools.cache
def _device() -> jax.Device:
    """Returns a CPU device for the second thread, with worker threads of its own.

    The main program waits for the second thread in one of XLA's worker threads. If the
    second thread needed the same worker threads, both could wait for each other.
    """
    return make_cpu_client(asynchronous=False).local_devices()[0]
