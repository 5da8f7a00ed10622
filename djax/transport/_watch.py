"""A program that ends the process that started it when a call of MPI takes too long.

MPI's start and its end hold Python's interpreter lock, so that no thread of the waiting
process could write a word. So :mod:`djax.transport._start` runs this file as a program
of its own, which needs nothing but Python's library. The program reads from a pipe. The
pipe closes when the call has returned or the process has died, and the program ends.
"""

import os
import pathlib
import select
import signal
import sys
import time

_POLL = 0.5  # Seconds between two searches for missing ranks.


def main(doing: str, patience: float, limit: float, parent: int) -> None:
    """Waits for the end of the call, and ends the caller if that takes too long.

    Args:
      doing: what the caller does, for the messages.
      patience: seconds after which a first message says that this takes long.
      limit: seconds after which the caller is ended.
      parent: process id of the caller.
    """
    begin, said = time.monotonic(), False
    who = f"rank {os.environ.get('PMI_RANK', '?')} of {os.environ.get('PMI_SIZE', '?')}"
    dead_before: set[int] = set()
    while not select.select([0], [], [], _POLL)[0]:
        waited = time.monotonic() - begin
        dead, late = missing(parent)
        # Processes do not all start or end at the same moment. So a rank counts as dead
        # only if two searches in a row find it dead.
        if dead & dead_before:
            say(f"{who} ends {doing}: {name(dead)} died before.")
        elif waited > limit:
            say(f"{who} ends after {waited:.0f} s of {doing}: {blame(late)}.")
        else:
            if waited > patience and not said:
                said = True
                say(f"{who} is {doing} since {waited:.0f} s: {blame(late)}.")
            dead_before = dead
            continue
        time.sleep(0.5)  # The launcher needs this time to pass the line on.
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        return


def say(text: str) -> None:
    """Writes one line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def name(ranks: set[int]) -> str:
    """Returns the ranks in words, such as "ranks 1, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def blame(late: set[int]) -> str:
    """Returns a clause that names the ranks for which the caller waits."""
    if not late:
        return "not all ranks have come"
    return f"{name(late)} {'have' if len(late) > 1 else 'has'} not come"


def missing(caller: int) -> tuple[set[int], set[int]]:
    """Finds the ranks of this node that have died, and those that are late.

    These ranks are known under MPICH's launcher on Linux only. If the job runs on
    several nodes, dead ranks are not known.

    Args:
      caller: process id of a rank that waits for the others.

    Returns:
      The ranks that have died, and the living ranks that do not wait as the caller
      does. Both sets are empty if the ranks are not known.
    """
    try:
        size, local = (int(os.environ[x]) for x in ("PMI_SIZE", "MPI_LOCALNRANKS"))
        parents = _parents()
        launcher = next(x for x in _ancestors(caller, parents) if is_launcher(x))
    except (KeyError, OSError, StopIteration, ValueError):
        return set(), set()
    mine = {x for x, parent in parents.items() if parent == launcher}
    alive = {rank for x in mine if (rank := _rank(x)) is not None}
    waiting = set()
    for process in parents:
        if _is_watcher(process) and launcher in _ancestors(process, parents):
            waiting.add(_rank(process))
    dead = set(range(size)) - alive if local == size else set()
    return dead, alive - waiting - dead


def _parents() -> dict[int, int]:
    """Returns the parent of each living process, by process id."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:  # The name of the process, in brackets, may contain spaces.
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if stat[0] not in "ZX":
                found[int(folder.name)] = int(stat[1])
    return found


def _ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = []
    while (process := parents.get(process, 0)) > 1:
        found.append(process)
    return found


def _read(process: int, file: str) -> bytes:
    """Reads a process's file in `/proc`; returns nothing if the process has ended."""
    try:
        return pathlib.Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return b""


def is_launcher(process: int) -> bool:
    """Whether a process is MPICH's, which starts the ranks of a node."""
    command = pathlib.Path(f"/proc/{process}/comm").read_text()
    return command.startswith("hydra_pmi_prox")


def _is_watcher(process: int) -> bool:
    return __file__.encode() in _read(process, "cmdline")


def _rank(process: int) -> int | None:
    for entry in _read(process, "environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == b"PMI_RANK":
            return int(value)
    return None


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
