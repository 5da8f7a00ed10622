"""The folder of checkpoints that all processes of one job share.

A checkpoint can be used only if every process of the job still has its part, if all
parts belong to the same run, and if no other job writes to the folder meanwhile. This
file ensures all three. Each process has a folder of its own in the shared folder, and
saves a step 0 without arrays there when it begins. So if other processes have
checkpoints and one process has no step at all, not even step 0, its files were lost.
"""

import errno
import fcntl
import json
import os
import pathlib
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from djax.transport import say

from ._checkpoint_files import PART, CheckpointError, Saved, Steps, one_line

PATIENCE = 5.0
"""Seconds to wait for the lock, which processes of a killed job may still hold."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Folder:
    """Locks the shared folder, checks its identity, and compares the processes' steps.

    All processes have to call each method together, except for `close`. If a method
    raises an error, it raises the error on all processes.

    Args:
      path: the shared folder.
      own: name of the folder of this process in the shared folder.
      gather: collects an object from each process, and returns the list of all of them
        to each process.
      leads: whether this process is the one that locks the folder.

    Attributes:
      path: the shared folder.
      steps: the saved steps of this process.
      everyones: the complete steps of each process, by the name of its folder.
    """

    def __init__(
        self,
        path: pathlib.Path,
        own: str,
        gather: Callable[[Any], list[Any]],
        leads: bool,
    ):
        """Locks the folder, and finds the steps of all processes.

        Raises:
          CheckpointError: if another job uses the folder, or it cannot be written to.
        """
        self.path, self.steps = path, Steps(path / own)
        self._gather, self._leads = gather, leads
        self._lock: Any = None
        self._together(self._look)
        found = (own, self.steps.folder.is_dir(), self.steps.find())
        everyone = gather(found)
        self.everyones = {name: steps for name, _, steps in everyone}
        self._missing = sorted(name for name, there, _ in everyone if not there)

    @property
    def used(self) -> bool:
        """Whether any process has saved a step after step 0."""
        return any(max(steps, default=0) > 0 for steps in self.everyones.values())

    def others(self) -> list[str]:
        """Returns the names of folders that belong to no process of this job."""
        found = {path.name for path in self.path.glob("worker*_of_*")}
        seen = set().union(*self._gather(found))
        return sorted(seen - self.everyones.keys())

    def refuse(self, why: str) -> NoReturn:
        """Unlocks the folder, and raises CheckpointError with the text `why`."""
        self.close()
        raise CheckpointError(why)

    def check_complete(self) -> None:
        """Raises CheckpointError if only some of the processes still have steps."""
        lost = self._missing or [n for n, steps in self.everyones.items() if not steps]
        if self.used and lost:
            what = "is missing" if self._missing else "is empty"
            self.refuse(
                f"checkpoints: {self.path}/{lost[0]} {what}, but others have "
                f"checkpoints ({self._describe()}); nothing was changed. Bring it "
                "back, or choose another folder."
            )

    def compare(self, identity: Mapping[str, str]) -> None:
        """Raises CheckpointError if the folder belongs to a run of another identity."""
        self._together(lambda: self._compare(identity) if self._leads else None)

    def begin(self, identity: Mapping[str, str]) -> None:
        """Prepares the folder for the checkpoints of a run with this identity.

        Raises:
          CheckpointError: if a process cannot write to its folder.
        """
        self._together(lambda: self._begin(identity))

    def find_intact(self, common: bool) -> tuple[int, Saved]:
        """Finds the newest intact step, and reports damaged newer ones on stderr.

        Args:
          common: whether all processes have to continue from the same step.

        Returns:
          The number of the step, and what this process saved at it.

        Raises:
          CheckpointError: if a process has no intact step. Nothing is removed then.
        """
        candidates = set(self.everyones[self.steps.folder.name])
        if common:
            candidates = set.intersection(*map(set, self.everyones.values()))
        damage: list[str] = []
        found = None
        for step in sorted(candidates, reverse=True):
            saved, text = self._try_to_read(step)
            texts = self._gather(text) if common else [text]
            damage += dict.fromkeys(filter(None, texts))
            if saved is not None and not any(texts):
                found = step, saved
                break
        if damage and found is not None and found[0] == 0:
            found = None  # Step 0 has no arrays, so there is nothing to resume from.
        everyones = self._gather((found is None, damage))
        damage = list(dict.fromkeys(text for _, texts in everyones for text in texts))
        if found is None or any(nothing for nothing, _ in everyones):
            why = "; ".join(damage) or (
                f"no step is on all processes: {self._describe()}"
            )
            self.refuse(
                f"checkpoints: {self.path} has nothing to go on from: {why}; nothing "
                "was changed. Choose another folder to start anew."
            )
        if damage and self._leads:
            older = f"step {found[0]}" if common else "an older one"
            say(f"{'; '.join(damage)}: going on from {older}")
        return found

    def close(self, *, wait: bool = True) -> None:
        """Unlocks the folder.

        Args:
          wait: whether to wait until this process has written everything.
        """
        if wait:
            self.steps.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _describe(self) -> str:
        """Lists the steps of each process, for an error's text."""
        return ", ".join(
            f"{name}: {' '.join(map(str, steps)) or 'none'}"
            for name, steps in self.everyones.items()
        )

    def _together(self, act: Callable[[], str | None]) -> None:
        """Calls `act`; an error of any process is raised on all of them."""
        try:
            why = act() or ""
        except OSError as error:
            where = self.steps.folder
            why = f"checkpoints: cannot write to {where}: {one_line(error)}."
        if mistakes := list(filter(None, self._gather(why))):
            self.refuse(mistakes[0])

    def _try_to_read(self, step: int) -> tuple[Saved | None, str]:
        """Reads a step; returns it and "", or None and a text on what is damaged."""
        try:
            return self.steps.read(step), ""
        except CheckpointError as error:
            return None, str(error)

    def _look(self) -> str | None:
        if self.path.exists() and not self.path.is_dir():
            return f"checkpoints: {self.path} is a file; choose a folder."
        self.path.mkdir(parents=True, exist_ok=True)
        return self._take_lock() if self._leads else None

    def _take_lock(self) -> str | None:
        path, end = self.path / "lock", time.monotonic() + PATIENCE
        self._lock = path.open("a+")
        # Unlocks the folder even if the caller fails and never calls `close`.
        weakref.finalize(self, self._lock.close)
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                holder = path.read_text().strip() or "another process"
                return f"checkpoints: {self.path} is in use by {holder}."
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                say(
                    f"checkpoints: {self.path} cannot be locked "
                    f"({one_line(error)}): let no other run use it."
                )
                break
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()
        return None

    def _compare(self, identity: Mapping[str, str]) -> str | None:
        path = self.path / "identity.json"
        try:
            saved = json.loads(path.read_text())
            if not isinstance(saved, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError) as error:
            return (
                f"checkpoints: {path} is missing or damaged ({one_line(error)}), so "
                "that nobody knows of which run they are; nothing was changed."
            )
        for key, value in identity.items():
            if saved.get(key) != value:
                return (
                    f"checkpoints: {self.path} is of a run with {key} "
                    f"{saved.get(key)}, this one has {value}; choose another folder."
                )
        return None

    def _begin(self, identity: Mapping[str, str]) -> None:
        self.steps.prepare()
        if self._leads:
            path = self.path / "identity.json"
            part = path.with_suffix(PART)
            part.write_text(json.dumps(dict(identity), indent=2) + "\n")
            part.replace(path)
