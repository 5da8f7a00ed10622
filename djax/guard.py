"""Keeps the other processes of an MPI job alive when one of them is killed.

It is started in front of a script or of a module::

    mpirun -disable-auto-cleanup -n 4 python -m djax.guard train.py ...
    mpirun -disable-auto-cleanup -n 4 python -m djax.guard -m experiments.train ...

MPICH's launcher ends the whole job when a signal kills one of its processes, whatever
its options say. Examples are SIGSEGV, and SIGKILL, which the system sends when it runs
out of memory. The launcher does not end the job when a process exits by itself.
Therefore each rank runs as the child of a guard, a process that only waits. When a
signal has killed the child, the guard exits with code 1. When the guard is killed, its
child is killed too. When another rank has died, the guard tells its child.

The job itself has to be able to continue without a rank. A job of
:func:`djax.asynchronous.run` with `transport="zmq"` is able to.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

_PIPE = "DJAX_GUARD_PIPE"  # The child reads it in :mod:`djax.transport._end`.


def main(arguments: Sequence[str]) -> int:
    """Runs Python as a child of this process.

    Args:
      arguments: a script, or `-m` and a module, followed by its own arguments.

    Returns:
      The exit code of the child, 1 if a signal killed the child, or 2 if there are no
      arguments.
    """
    if not arguments:
        print("usage: python -m djax.guard (SCRIPT | -m MODULE) ...", file=sys.stderr)
        return 2
    launcher = os.getppid()
    name = pathlib.Path(f"/proc/{launcher}/comm")
    if name.exists() and name.read_text().startswith("hydra_pmi_prox"):
        _die_with(launcher)
    heard, say = os.pipe()
    os.set_inheritable(heard, True)

    def tell(number, frame):
        with contextlib.suppress(OSError):  # The child has ended, or the pipe is full.
            os.write(say, b"!")

    os.set_blocking(say, False)
    # The launcher sends this signal to all ranks when one of them has died.
    signal.signal(signal.SIGUSR1, tell)
    child = _start(arguments, heard)
    os.close(heard)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    # Python removes the handler when it exits. If another rank died at that moment, the
    # signal would kill the guard, and the launcher would end the whole job.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    rank = os.environ.get("PMI_RANK", "?")
    print(f"rank {rank} was ended by {name}", file=sys.stderr, flush=True)
    return 1


def _start(arguments: Sequence[str], heard: int) -> subprocess.Popen[bytes]:
    """Starts Python with these arguments as a child, which reads the pipe `heard`."""
    guard = os.getpid()

    def prepare():
        if sys.platform == "linux":
            # The launcher signals the process group of the guard; the child leaves it.
            os.setpgid(0, 0)
        _die_with(guard)

    return subprocess.Popen(
        [sys.executable, *arguments],
        close_fds=False,  # The child talks to the launcher through an open file.
        env={**os.environ, _PIPE: str(heard)},
        preexec_fn=prepare,
    )


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # The parent died before the call.
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # `python -m djax.guard` has loaded djax and with it JAX. Started anew as a script,
    # the guard waits without their memory.
    if __package__:
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
