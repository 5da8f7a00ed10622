"""Lets the processes of a job that `jax.distributed` connects start and end together.

If a process fails or is killed, the others would wait for its messages: XLA has no time
limit for them. So each process has a thread that tells the others, through the store of
keys and values of JAX's coordination service, that the process is alive, and that ends
the process if another one has failed or is not alive any more. Process 0 looks for
signs of life, since the service runs in it.
"""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # The service's client has no public name.

from ._end import EXIT_TIMEOUT, end_now
from ._exit_code import ExitCode
from ._launch import launcher_rank, launcher_size
from ._standing import Standstill, python_place
from ._start import START_TIMEOUT, seconds_of
from ._watch import say

HEARTBEAT = "DJAX_HEARTBEAT", 30.0
"""Environment variable, and its default: seconds without a sign of life after which a
process counts as dead, and all others end."""

_FAILED, _ALIVE = "djax/failed/", "djax/alive/"
_ENDED, _GONE = "djax/ended/", "djax/gone/"  # The program has; the process does now.
_BROKEN = "Gloo", "closed by peer", "reset by peer", "NCCL", "UNAVAILABLE"
"""Words in the errors that a process gets when another one has gone."""
_FIRST_WORD = 1.0  # Seconds in which the failed process may say why itself.
_LAST_WORD = 5.0  # Seconds that process 0 waits for the others to end.


def start_processes() -> int:
    """Lets this process join the others of its job, and end together with them.

    Call it before JAX's first computation, in every process. It calls
    `jax.distributed.initialize` if the job has several processes and nobody has called
    that yet. The processes find each other if one of these has started them:

    * `srun`, or the `mpirun` of Open MPI; the `mpirun` of MPICH if mpi4py is installed;
    * Kubernetes, as an indexed job or a JobSet, with the package `kubernetes`;
    * anything else that sets `JAX_COORDINATOR_ADDRESS` (of process 0, with a port),
      `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; `mpirun` and `srun` set the last two.

    From then on an exception, or an exit code other than 0, of one process ends all of
    them. If a process is killed, the others end when it has given no sign of life for
    the seconds that `DJAX_HEARTBEAT` sets, by default 30. Set more seconds if a process
    may hold Python's lock for longer. A process that has come to its end waits for all
    others. If one of these then stands in one call for longer than the seconds that
    `DJAX_EXIT_TIMEOUT` sets, by default 60, all end, since it may wait for the first.

    If a process does not come within the seconds that `DJAX_START_TIMEOUT` sets, by
    default 600, JAX ends those that wait for it.

    Returns:
      The number of processes; 1 if nothing has started several.

    Raises:
      ValueError: if an environment variable has a wrong value.
      RuntimeError: if JAX has computed something before, or if mpi4py is missing where
        it is needed.
    """
    if not jax.distributed.is_initialized():
        if not (found := _arguments()):
            return 1
        limit = seconds_of(HEARTBEAT)
        jax.distributed.initialize(
            **found,
            initialization_timeout=math.ceil(seconds_of(START_TIMEOUT)),
            # The thread below finds dead processes first, and says more.
            heartbeat_timeout_seconds=math.ceil(2 * limit) + 10,
            shutdown_timeout_seconds=math.ceil(seconds_of(EXIT_TIMEOUT)),
        )
    end_processes_together()
    return jax.process_count()


def _arguments() -> dict[str, Any]:
    """Returns what `jax.distributed.initialize` has to be told; empty if nothing."""
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, size = os.environ.get("JAX_COORDINATOR_ADDRESS"), launcher_size()
    given = [os.environ.get(name) for name in names]
    if address and size is not None and not any(given):
        given = [str(size), str(launcher_rank())]
    if address and any(given):
        for name, text in zip(names, given, strict=True):
            if not (text or "").isdigit():
                raise ValueError(
                    f"{name}={text or ''} must be a whole number, since "
                    "JAX_COORDINATOR_ADDRESS is set."
                )
        if not address.rpartition(":")[2].isdigit():
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS={address} must end with a port, as in "
                "node0:12345."
            )
        count, number = map(int, filter(None, given))
        address = {"coordinator_address": address}
        return address | {"num_processes": count, "process_id": number}
    if address or any(given):
        needed = ("JAX_COORDINATOR_ADDRESS", *names)
        missing = [name for name in needed if name not in os.environ]
        raise ValueError(
            f"start_processes: {' and '.join(missing)} must be set, too, since "
            "no launcher says how many processes there are."
        )
    if "JOB_COMPLETION_INDEX" in os.environ:  # Kubernetes
        return {"cluster_detection_method": "k8s"}
    if (size or 1) == 1:
        return {}
    if "MPI_LOCALNRANKS" not in os.environ:
        return {"cluster_detection_method": None}
    if importlib.util.find_spec("mpi4py") is None:
        raise RuntimeError(
            "start_processes: JAX asks mpi4py where the processes are that MPICH's "
            "mpirun has started; install mpi4py, or set JAX_COORDINATOR_ADDRESS to the "
            "first host and a free port, such as node0:12345."
        )
    return {"cluster_detection_method": "mpi4py"}


@functools.cache  # Once is enough.
def end_processes_together() -> None:
    """Makes the processes of `jax.distributed` end together, however one of them ends.

    All processes have to call this function. If there is one process, it does nothing.
    """
    if distributed.global_state.num_processes not in (None, 1):
        _End()


def process_number() -> int:
    """Returns the number of this process in its job, without starting anything."""
    if jax.distributed.is_initialized():
        return distributed.global_state.process_id
    number = os.environ.get("JAX_PROCESS_ID", "")
    return int(number) if number.isdigit() else launcher_rank()


def processes_come(what: str, seconds: float) -> bool:
    """Waits for all processes, and tells whether they come within some seconds."""
    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier(f"djax/{what}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        return False
    return True


class _End:
    """Tells the other processes how this one ends, and ends it if one of them fails."""

    def __init__(self):
        """Starts the thread."""
        state = distributed.global_state
        self._client: Any = state.client
        self._number, self._count = state.process_id, state.num_processes
        self._name = f"process {self._number} of {self._count}"
        self._limit, self._code = seconds_of(HEARTBEAT), ExitCode()
        self._patience, self._standstill = seconds_of(EXIT_TIMEOUT), Standstill()
        self._leaving, self._dead = False, set[int]()
        self._beats, self._over = 0, threading.Event()
        self._heard = {i: (-1, time.monotonic()) for i in range(self._count or 1)}
        sys.excepthook = self._failed
        self._thread = threading.Thread(
            target=self._watch, name="djax processes", daemon=True
        )
        self._thread.start()
        atexit.register(self._leave)
        if self._number:
            # Kept, since C calls it.
            self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
            ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def _watch(self) -> None:
        pause = min(1.0, self._limit / 5)
        while not self._over.wait(pause):
            try:
                self._beat()
                verdict = self._verdict()
            except jax.errors.JaxRuntimeError as error:
                if not self._over.is_set():
                    text = str(error).splitlines()[0][:200]
                    end_now(
                        f"{self._name} ends: process 0, which connects the others, "
                        f"does not answer any more ({text}).",
                        1,
                    )
                return
            if verdict is not None and not self._over.is_set():
                self._obey(*verdict)
            elif not self._leaving:
                self._check_progress()

    def _check_progress(self) -> None:
        """Ends all processes if this one may wait for one that has ended."""
        if not (ended := self._numbers(_ENDED)):
            return
        if (seconds := self._standstill.seconds()) > self._patience:
            why = (
                f"has stood at {python_place()} for {seconds:.0f} s, and process "
                f"{min(ended)} ended before (all have to communicate equally often)"
            )
            self._accuse(self._number, 1, why)
            say(f"{self._name} {why}: all processes end.")
            self._end(1)

    def _beat(self) -> None:
        self._beats += 1
        place = f"{_ALIVE}{self._number}"
        self._client.key_value_set(place, str(self._beats), allow_overwrite=True)

    def _verdict(self) -> tuple[int, int, str] | None:
        """Returns which process has failed, with which exit code, and why, if any."""
        if self._number == 0:
            self._look_for_the_dead()
        for key, value in self._client.key_value_dir_get(_FAILED):
            code, _, why = value.partition(" ")
            return int(key.removeprefix(_FAILED)), int(code), why
        return None

    def _look_for_the_dead(self) -> None:
        now = time.monotonic()
        ended = self._numbers(_ENDED)
        alive = dict(self._client.key_value_dir_get(_ALIVE))
        for i, (beats, since) in self._heard.items():
            found = int(alive.get(f"{_ALIVE}{i}", 0))
            if found != beats:
                self._heard[i] = found, now
            elif now - since > self._limit and i not in ended:
                self._dead.add(i)
                self._accuse(i, 1, f"gave no sign of life for {self._limit:g} s")

    def _numbers(self, place: str) -> set[int]:
        """Returns the processes that have stored something in a place."""
        return {
            int(key.removeprefix(place))
            for key, _ in self._client.key_value_dir_get(place)
        }

    def _accuse(self, number: int, code: int, why: str) -> None:
        """Tells all processes of a failure."""
        # An error means that it was told before, or that nobody is there.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_FAILED}{number}", f"{code} {why}")

    def _obey(self, failed: int, code: int, why: str) -> None:
        """Ends this process, since another one has failed."""
        if failed == self._number:
            return
        time.sleep(_FIRST_WORD)
        if self._over.is_set():  # All processes end by themselves.
            return
        alive = min(i for i in range(self._count or 1) if i != failed)
        if self._number == alive:
            say(f"process {failed} of {self._count} {why}: all processes end.")
        self._end(code or 1)

    def _end(self, code: int) -> NoReturn:
        """Ends this process; process 0, without which nobody hears, ends last."""
        client, end = self._client, time.monotonic() + _LAST_WORD
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(f"{_GONE}{self._number}", "")
            while self._number == 0 and time.monotonic() < end:
                if len(self._numbers(_GONE) | self._dead) == self._count:
                    break
                time.sleep(0.1)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.3 * (self._number == 0))
        os._exit(code)

    def _failed(self, kind: Any, error: BaseException, trace: Any) -> None:
        """Reports an uncaught exception, and ends all processes."""
        if any(word in str(error) for word in _BROKEN) and self._another_failed():
            time.sleep(2 * _LAST_WORD)  # The thread ends this process meanwhile.
        self._over.set()
        first = f"{kind.__name__}: {error}".splitlines()[0][:500]
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
        said = f"{self._name} failed:\n{text}"
        self._accuse(self._number, 1, f"failed ({first})")
        if not self._said_by_another(f"1 failed ({first})"):
            say(said)
        self._end(1)

    def _said_by_another(self, what: str) -> bool:
        """Whether a process of a lower number fails by the same exception."""
        if self._number == 0:
            return False
        time.sleep(_FIRST_WORD)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            failed = dict(self._client.key_value_dir_get(_FAILED))
            return any(failed.get(f"{_FAILED}{i}") == what for i in range(self._number))
        return True

    def _another_failed(self) -> bool:
        """Waits until another process is known to have failed, or to be dead."""
        end = time.monotonic() + self._limit + 5
        while time.monotonic() < end:
            try:
                found = self._client.key_value_dir_get(_FAILED)
            except jax.errors.JaxRuntimeError:
                return True
            if found:
                return True
            time.sleep(0.2)
        return False

    def _aborted(self, number: int) -> None:
        """Says why JAX aborts this process: in most cases, process 0 has died."""
        say(
            f"JAX has ended {self._name}. If it says above that a call has failed, "
            "process 0, which connects the processes, has died."
        )
        os._exit(1)

    def _leave(self) -> None:
        """Tells the others that this process has ended, or ends them, too."""
        if code := self._code():
            self._over.set()
            self._accuse(self._number, code, f"ended with exit code {code}")
            self._end(code)
        self._leaving = True
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_ENDED}{self._number}", "")
            while len(self._numbers(_ENDED)) < (self._count or 1):
                time.sleep(0.1)  # The thread ends this process if another one fails.
        self._over.set()
        self._thread.join()
