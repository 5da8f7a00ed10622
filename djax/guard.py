"""Lets the other processes of an MPI job live when one is killed.

    mpirun -disable-auto-cleanup -n 4 python -m djax.guard train.py ...
    mpirun -disable-auto-cleanup -n 4 python -m djax.guard -m experiments.train ...

MPICH's launcher ends a job when a process of it has died of a signal (SIGKILL, also
from a system that is out of memory, or SIGSEGV), whatever its options say, but not when
one has merely exited. So each rank becomes the child of a process that does nothing
else, and exits with code 1 when its child has died. The child does not outlive it, and
hears from it when another rank has died.

It is for jobs that can go on: :func:`djax.asynchronous.run` with `transport="zmq"`.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

_PIPE = "DJAX_GUARD_PIPE"  # As :mod:`djax.transport._end` reads it.


def main(arguments: Sequence[str]) -> int:
    """Runs Python with these arguments, and returns its exit code, or 1.

    Args:
      arguments: a script, or `-m` and a module, and what it takes.
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
    # By this signal the launcher tells everybody that somebody has died.
    signal.signal(signal.SIGUSR1, tell)
    guard = os.getpid()

    def prepare():
        if sys.platform == "linux":
            os.setpgid(0, 0)  # The launcher signals the guard's process group.
        _die_with(guard)

    child = subprocess.Popen(
        [sys.executable, *arguments],
        close_fds=False,  # It talks to the launcher through a file that is open.
        env={**os.environ, _PIPE: str(heard)},
        preexec_fn=prepare,
    )
    os.close(heard)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    # Python removes the handler when it ends. If another rank died just then, the
    # signal would end this process, and the launcher would end the whole job.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    rank = os.environ.get("PMI_RANK", "?")
    print(f"rank {rank} was ended by {name}", file=sys.stderr, flush=True)
    return 1


def _die_with(parent: int) -> None:
    """Lets the kernel end this process when its parent dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # It has died meanwhile.
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if __package__:  # By now JAX is loaded, which a process that waits has no use for.
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
