"""A program that ends the process that started it when a call of MPI takes too long.

MPI's start and its end hold Python's interpreter lock, so that no thread of the waiting
process could write a word. So :mod:`djax.transport._start` runs this file as a program
of its own, which needs nothing but Python's library. It reads from a pipe, which closes
when the call has returned or the process has died.
"""

import os
import pathlib
import select
import signal
import sys
import time

_POLL = 0.5  # Seconds between two looks.


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
        # Processes do not all start or end at the same moment, so a rank has to be
        # missing at two looks.
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
        time.sleep(0.5)  # In which the launcher passes the line on.
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        return


def say(text: str) -> None:
    """Writes one line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def name(ranks: set[int]) -> str:
    """Returns the ranks as a sentence names them."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def blame(late: set[int]) -> str:
    """Returns whom the caller waits for, as a clause."""
    if not late:
        return "not all ranks have come"
    return f"{name(late)} {'have' if len(late) > 1 else 'has'} not come"


def missing(caller: int) -> tuple[set[int], set[int]]:
    """Finds the ranks of this node that have died, and those that are late.

    They are known under MPICH's launcher on Linux only. If the job runs on several
    nodes, dead ranks are not known.

    Args:
      caller: process id of a rank that waits for the others.

    Returns:
      The ranks that have died, and the living ranks that do not wait like the caller.
      Both are empty where they are not known.
    """
    try:
        size, local = (int(os.environ[x]) for x in ("PMI_SIZE", "MPI_LOCALNRANKS"))
        parents = _parents()
        launcher = next(x for x in _ancestors(caller, parents) if _is_launcher(x))
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
    """Returns what the kernel says of a process; nothing if it has ended."""
    try:
        return pathlib.Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return b""


def _is_launcher(process: int) -> bool:
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
