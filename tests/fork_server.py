"""Runs Python programs in copies of a process that has imported everything already.

A rank of an MPI job needs about a second for its imports before it does anything, and
tests start hundreds of ranks. So one process, the server, imports what programs need,
and starts neither MPI nor JAX's devices. Each rank that mpirun starts is a client: a
small process that asks the server to fork, and lends its child all of its open files,
its environment and its folder. The client then ends as the child does, by the same exit
code or signal. When the client is killed, so is the child.

    python tests/fork_server.py serve ADDRESS
    python -I -S tests/fork_server.py ask ADDRESS -c PROGRAM ARGUMENTS...

The children of a server differ from processes that are started in the usual way. All
have the same seed of Python's hashes and of NumPy's global generator. What a module
reads from the environment when it is imported, it has read from the server's. And the
launcher is not among the parents of a child, which does not learn of its death.
"""

import contextlib
import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import types
from collections.abc import Sequence

_HIGH = 500  # No file of a client has this number or a higher one.


def listen(address: str) -> socket.socket:
    """Returns a socket on which clients wait until a server has started."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{address}")  # A name without a file, which ends with its user.
    listener.listen(64)
    return listener


# ---- The client ----------------------------------------------------------------------


def ask(address: str, arguments: Sequence[str]) -> int:
    """Has a program run by the server.

    Args:
      address: of the server's socket.
      arguments: what else would follow `python` on a command line.

    Returns:
      The exit code of the program. If a signal has ended the program, the same signal
      ends this process.
    """
    files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    files = [file for file in files if _is_open(file)]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "files": files,
        "folder": os.getcwd(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(f"\0{address}")
        socket.send_fds(server, [json.dumps(request).encode()], files)
        for file in files:
            if file > 2:  # Who is at the other end sees when the child closes it.
                os.close(file)
        code = int(server.recv(16) or 1)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)  # Without a traceback of this file.
        os.kill(os.getpid(), -code)
    return code


def _is_open(file: int) -> bool:
    """Whether a number is still that of an open file."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


# ---- The server ----------------------------------------------------------------------


def serve(listener: socket.socket, user: int) -> Sequence[str]:
    """Forks a child for each client.

    Args:
      listener: where clients ask.
      user: a file that ends when no client will come any more.

    Returns:
      In a child, the arguments that its client was started with. The server itself
      exits instead.
    """
    events = selectors.DefaultSelector()
    clients: dict[int, socket.socket] = {}  # By the process id of the child.
    events.register(user, selectors.EVENT_READ, "the user has ended")
    events.register(listener, selectors.EVENT_READ, "a client asks")
    while True:
        for key, _ in events.select():
            if key.data == "the user has ended":
                for child in clients:
                    os.kill(child, signal.SIGKILL)
                sys.exit()
            elif key.data == "a client asks":
                client, _ = listener.accept()
                message, files, _, _ = socket.recv_fds(client, 1 << 20, _HIGH)
                if not message:  # It was killed.
                    client.close()
                    continue
                child = os.fork()
                if child == 0:
                    for other in [events, listener, client, *clients.values()]:
                        other.close()
                    return _become(json.loads(message), files)
                for file in files:
                    os.close(file)
                clients[child] = client
                events.register(client, selectors.EVENT_READ, child)
                events.register(os.pidfd_open(child), selectors.EVENT_READ, child)
            elif key.fileobj is clients.get(key.data):  # The client was killed.
                events.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
            elif isinstance(key.fileobj, int):  # The child has ended.
                events.unregister(key.fileobj)
                os.close(key.fileobj)
                _, status = os.waitpid(key.data, 0)
                code = os.waitstatus_to_exitcode(status)
                with clients.pop(key.data) as client:
                    with contextlib.suppress(KeyError, OSError):  # It was killed.
                        events.unregister(client)
                        client.send(str(code).encode())


def _become(request: dict, files: Sequence[int]) -> Sequence[str]:
    """Gives this process what the client has lent, and nothing of the server."""
    lent = [fcntl.fcntl(file, fcntl.F_DUPFD, _HIGH) for file in files]
    os.closerange(0, _HIGH)
    for file, number in zip(lent, request["files"], strict=True):
        os.dup2(file, number)
    os.closerange(_HIGH, 2 * _HIGH)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    return request["arguments"]


def run(arguments: Sequence[str]) -> None:
    """Does what `python` does with these arguments."""
    how, *rest = arguments
    further = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = ["", *filter(None, further)]  # In place of this file's folder.
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        program, *sys.argv[1:] = rest
        sys.argv[0] = "-c"
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)
    else:
        raise ValueError(f"a program is given by -c or -m, not {how}")


def main() -> None:
    """The command line."""
    role, address, *arguments = sys.argv[1:]
    if role == "ask":
        sys.exit(ask(address, arguments))
    with listen(address) as listener:
        print("clients may ask", flush=True)  # They wait for the imports.
        import jax.extend  # noqa: F401
        import networkx  # noqa: F401
        import pytest  # noqa: F401
        import scipy.special  # noqa: F401

        import experiments.train  # noqa: F401

        gc.collect()
        gc.freeze()  # Children copy less of the memory.
        arguments = serve(listener, sys.stdin.fileno())
    run(arguments)


if __name__ == "__main__":
    main()
