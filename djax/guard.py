"""Lets the other processes of an MPI job live when one is killed.

    mpirun -disable-auto-cleanup -n 4 python -m djax.guard train.py ...
    mpirun -disable-auto-cleanup -n 4 python -m djax.guard -m experiments.train ...

MPICH's launcher ends a job when a process of it has died of a signal (SIGKILL, also
from a system that is out of memory, or SIGSEGV), whatever its options say, but not when
one has merely exited. So each rank becomes the child of a process that does nothing
else, and exits with code 1 when its child has died.

It is for jobs that can go on: :func:`djax.asynchronous.run` with `transport="zmq"`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs Python with these arguments, and returns its exit code, or 1.

    Args:
      arguments: a script, or `-m` and a module, and what it takes.
    """
    if not arguments:
        print("usage: python -m djax.guard (SCRIPT | -m MODULE) ...", file=sys.stderr)
        return 2
    # By this signal the launcher tells everybody that somebody has died.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # The child talks to the launcher through a file that is open already.
    child = subprocess.Popen([sys.executable, *arguments], close_fds=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    rank = os.environ.get("PMI_RANK", "?")
    print(f"rank {rank} was ended by {name}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    if __package__:  # By now JAX is loaded, which a process that waits has no use for.
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
