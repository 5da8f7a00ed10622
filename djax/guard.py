"""Keeps the other processes of an MPI job alive when one of them is killed.

    mpirun -disable-auto-cleanup -n 4 python -m djax.guard train.py ...
    mpirun -disable-auto-cleanup -n 4 python -m djax.guard -m experiments.train ...

MPICH's launcher ends the whole job when one of its processes dies of a signal, whatever
its options say: of SIGSEGV, or of SIGKILL, which a system that is out of memory sends
too. It does not end the job when a process exits. Therefore each rank runs as the child
of a guard, a process that does nothing but wait, and exits with code 1 when its child
has died. The child does not outlive its guard, and the guard tells it when another rank
has died.

Jobs have to be able to go on without a rank, as :func:`djax.asynchronous.run` with
`transport="zmq"` is.
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
    """Runs Python as a child of this process.

    Args:
      arguments: a script, or `-m` and a module, followed by its own arguments.

    Returns:
      The exit code of the child; 1 if a signal ended it, and 2 without arguments.
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
    """Starts Python with these arguments, as a child that hears through a pipe."""
    guard = os.getpid()

    def prepare():
        if sys.platform == "linux":
            # The launcher sends its signals to the process group of the guard.
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
