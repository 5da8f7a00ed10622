"""Folders of checkpoints that a job may be killed over at any moment.

A checkpoint is of use only if every process of a job has its part, if nobody else
writes to the folder meanwhile, and if what is read is what was written. Both kinds of
training use what is here: :class:`Steps` are the checkpoints of one process, and
:class:`Folder` is what the processes of a job have in common.

Each step is a folder of its own with one file, a zip archive, whose checksums are
verified whenever it is read. It appears and disappears by renaming, which a kill cannot
cut in two. A step 0 without arrays says that a process has begun: where another has
checkpoints, and this one has not even that, something was lost.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import queue
import shutil
import socket
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PATIENCE = 5.0
"""Seconds in which the processes of a killed job may still let go of the folder."""
_FILE, _PART = "checkpoint.zip", ".part"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class CheckpointError(ValueError):
    """Something about checkpoints that one line explains, to all processes alike."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint of one process.

    Attributes:
      arrays: the bytes of each.
      kinds: dtype and shape of each, as texts.
      content: what was saved besides.
    """

    arrays: list[bytes]
    kinds: list[str]
    content: Any

    def restore(self, like: Sequence[np.ndarray], where: Any) -> list[np.ndarray]:
        """The arrays.

        Args:
          like: arrays of the shapes and dtypes that are expected.
          where: the checkpoint, for the error.

        Raises:
          CheckpointError: if it has other ones.
        """
        wanted = [_kind(array) for array in like]
        if self.kinds != wanted:
            pairs = zip(self.kinds, wanted, strict=False)
            differing = [f"{a} for {b}" for a, b in pairs if a != b]
            what = differing[0] if differing else f"{len(self.kinds)} arrays"
            raise CheckpointError(
                f"checkpoints: {where} has other arrays than this run, {what}; choose "
                "another folder."
            )
        return [
            np.frombuffer(data, array.dtype).reshape(array.shape)
            for data, array in zip(self.arrays, like, strict=True)
        ]


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


class Steps:
    """The checkpoints of one process, written by a thread of their own.

    Nothing waits for the thread when the process ends without `close`.

    Args:
      folder: where they are.

    Attributes:
      folder: as given.
      held: the steps that are known to be complete; to be read by any thread.
      failures: why some could not be written.
    """

    def __init__(self, folder: pathlib.Path):
        """Does nothing yet."""
        self.folder = folder
        self.held: frozenset[int] = frozenset()
        self.failures: list[str] = []
        self._said = 0
        self._jobs: queue.Queue = queue.Queue()
        self._thread: threading.Thread | None = None

    def find(self) -> list[int]:
        """The steps that were completed, the last one at the end."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def read(self, step: int) -> Saved:
        """Reads a step.

        Raises:
          CheckpointError: if it is damaged, or cannot be read.
        """
        path = self.folder / str(step)
        try:
            with zipfile.ZipFile(path / _FILE) as archive:
                head = json.loads(archive.read("head.json"))
                names = [f"{i:05d}" for i in range(len(head["kinds"]))]
                arrays = [archive.read(name) for name in names]
            return Saved(arrays, head["kinds"], head["content"])
        except Exception as error:  # Damaged bytes can say anything.
            raise CheckpointError(
                f"checkpoint {path} is damaged ({_one_line(error)})"
            ) from None

    def save(
        self, step: int, arrays: Sequence[np.ndarray], content: Any = None
    ) -> None:
        """Writes a step behind the caller's back, once the one before is written.

        Args:
          step: its number; one that there is already is replaced.
          arrays: which nobody changes meanwhile.
          content: what JSON can hold.
        """
        self.wait_until_finished()
        self._do(lambda: self._write(step, arrays, content))

    def remove(self, steps: Iterable[int]) -> None:
        """Removes steps behind the caller's back, after what was begun before."""
        for step in sorted(steps):
            self.held -= {step}
            self._do(lambda step=step: self._remove(step))

    def wait_until_finished(self) -> None:
        """Waits until everything is written."""
        self._jobs.join()

    def complain(self) -> None:
        """Says on stderr, once, why steps could not be written."""
        for text in self.failures[self._said :]:
            self._said += 1
            last = f"the last one is of step {max(self.held, default=0)}"
            print(
                f"checkpoint not saved: {text}; the run goes on, {last}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Waits until everything is written, and ends the thread."""
        self.wait_until_finished()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def prepare(self) -> None:
        """Makes the folder, clears away what a kill left, and writes a first file.

        Raises:
          OSError: if that is impossible.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"*{_PART}"):
            shutil.rmtree(path)
        if not self.find():
            self._write_files(0, [], None)

    def _do(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="djax checkpoints", daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._jobs.task_done()
        self._jobs.task_done()

    def _write(self, step: int, arrays: Sequence[np.ndarray], content: Any) -> None:
        try:
            self._write_files(step, arrays, content)
            self.held |= {step}
        except Exception as error:
            self.failures.append(f"step {step} in {self.folder}: {_one_line(error)}")
            with contextlib.suppress(OSError):
                for path in self.folder.glob(f"{step}{_PART}"):
                    shutil.rmtree(path)
                (self.folder / str(step) / (_FILE + _PART)).unlink(missing_ok=True)

    def _write_files(self, step, arrays, content) -> None:
        """Nothing of a step is to be seen before all of it is on the disk."""
        final = self.folder / str(step)
        if final.is_dir():  # Its file is replaced at once.
            _write_archive(final / (_FILE + _PART), arrays, content)
            (final / (_FILE + _PART)).replace(final / _FILE)
            _sync(final)
            return
        part = self.folder / f"{step}{_PART}"
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        _write_archive(part / _FILE, arrays, content)
        _sync(part)
        part.rename(final)
        _sync(self.folder)

    def _remove(self, step: int) -> None:
        path, part = self.folder / str(step), self.folder / f"{step}.old{_PART}"
        with contextlib.suppress(OSError):  # It takes up room, and does no harm.
            path.rename(part)
            shutil.rmtree(part)


def _write_archive(path: pathlib.Path, arrays: Sequence[np.ndarray], content) -> None:
    head = {"kinds": [_kind(array) for array in arrays], "content": content}
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("head.json", json.dumps(head))
            for i, array in enumerate(arrays):
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                with archive.open(f"{i:05d}", "w", force_zip64=True) as member:
                    member.write(data.data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: pathlib.Path) -> None:
    """Makes what was renamed in a folder last, should the machine stop."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


class Folder:
    """What the processes of a job have in common: its lock, its identity, its steps.

    Every method is called by all processes together, and raises on all alike, except
    for `close`.

    Args:
      path: the folder, the same on all processes.
      own: name of this process's folder in it.
      gather: from an object of each process to the list of all of them.
      leads: whether this process is the first, which holds the lock.

    Attributes:
      path: as given.
      steps: the checkpoints of this process.
      everyones: the completed steps of each process, by the name of its folder.
    """

    def __init__(
        self,
        path: pathlib.Path,
        own: str,
        gather: Callable[[Any], list[Any]],
        leads: bool,
    ):
        """Locks the folder, and looks what is there.

        Raises:
          CheckpointError: if another job uses it, or nothing can be written there.
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
        """Whether any process has done something that is saved."""
        return any(max(steps, default=0) > 0 for steps in self.everyones.values())

    def others(self, pattern: str) -> list[str]:
        """Names of folders that are of no process of this job."""
        found = {path.name for path in self.path.glob(pattern)}
        seen = set().union(*self._gather(found))
        return sorted(seen - self.everyones.keys())

    def refuse(self, why: str) -> None:
        """Raises CheckpointError, and lets go of the folder."""
        self.close()
        raise CheckpointError(why)

    def check_complete(self) -> None:
        """Raises CheckpointError unless every process has what it once had."""
        lost = self._missing or [n for n, steps in self.everyones.items() if not steps]
        if self.used and lost:
            what = "is missing" if self._missing else "is empty"
            self.refuse(
                f"checkpoints: {self.path}/{lost[0]} {what}, but others have "
                f"checkpoints ({self.describe()}); nothing was changed. Bring it back, "
                "or choose another folder."
            )

    def describe(self) -> str:
        """Which process has which steps, for errors."""
        return ", ".join(
            f"{name}: {' '.join(map(str, steps)) or 'none'}"
            for name, steps in self.everyones.items()
        )

    def compare(self, identity: Mapping[str, str]) -> None:
        """Raises CheckpointError unless the folder is of such a run."""
        self._together(lambda: self._compare(identity) if self._leads else None)

    def begin(self, identity: Mapping[str, str]) -> None:
        """Makes the folder ready for checkpoints of such a run.

        Raises:
          CheckpointError: if a process can write nothing.
        """
        self._together(lambda: self._begin(identity))

    def find_intact(self, common: bool) -> tuple[int, Saved]:
        """Finds the newest checkpoint, going back where some are damaged.

        Args:
          common: whether it has to be of the same step on all processes.

        Returns:
          The step, and this process's part of it; step 0 has nothing.

        Raises:
          CheckpointError: if there is none; nothing has been removed.
        """
        candidates = self.everyones[self.steps.folder.name]
        if common:
            candidates = set.intersection(*map(set, self.everyones.values()))
        damage: list[str] = []
        found = None
        for step in sorted(candidates, reverse=True):
            text = ""
            try:
                found = step, self.steps.read(step)
            except CheckpointError as error:
                found, text = None, str(error)
            texts = self._gather(text) if common else [text]
            damage += dict.fromkeys(filter(None, texts))
            if not any(texts):
                break
            found = None
        if damage and found is not None and found[0] == 0:
            found = None  # It has begun, which is not worth going back to.
        everyones = self._gather((found is None, damage))
        damage = list(dict.fromkeys(text for _, texts in everyones for text in texts))
        if any(nothing for nothing, _ in everyones):
            why = "; ".join(damage) or f"no step is on all processes: {self.describe()}"
            self.refuse(
                f"checkpoints: {self.path} has nothing to go on from: {why}; nothing "
                "was changed. Choose another folder to start anew."
            )
        assert found is not None
        if damage and self._leads:
            older = f"step {found[0]}" if common else "an older one"
            print(
                f"{'; '.join(damage)}: going on from {older}",
                file=sys.stderr,
                flush=True,
            )
        return found

    def close(self) -> None:
        """Waits until this process has written everything, and unlocks the folder."""
        self.steps.close()
        self.unlock()

    def unlock(self) -> None:
        """Lets other jobs use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _together(self, act: Callable[[], str | None]) -> None:
        """Acts, and raises what went wrong on any process on all of them."""
        try:
            why = act() or ""
        except OSError as error:
            why = (
                f"checkpoints: cannot write to {self.steps.folder}: {_one_line(error)}."
            )
        if mistakes := list(filter(None, self._gather(why))):
            self.refuse(mistakes[0])

    def _look(self) -> str | None:
        if self.path.exists() and not self.path.is_dir():
            return f"checkpoints: {self.path} is a file; choose a folder."
        self.path.mkdir(parents=True, exist_ok=True)
        return self._take_lock() if self._leads else None

    def _take_lock(self) -> str | None:
        path, end = self.path / "lock", time.monotonic() + PATIENCE
        self._lock = path.open("a+")
        # Whoever gives up before it trains may not close this.
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
                print(
                    f"checkpoints: {self.path} cannot be locked "
                    f"({_one_line(error)}): let no other run use it.",
                    file=sys.stderr,
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
                f"checkpoints: {path} is missing or damaged ({_one_line(error)}), so "
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
            part = path.with_suffix(_PART)
            part.write_text(json.dumps(dict(identity), indent=2) + "\n")
            part.replace(path)


def environment() -> dict[str, str]:
    """Settings of JAX that change a run's numbers, as part of its identity."""
    names = (
        "jax_enable_x64",
        "jax_default_matmul_precision",
        "jax_default_prng_impl",
        "jax_threefry_partitionable",
        "jax_numpy_dtype_promotion",
    )
    return {name: str(getattr(jax.config, name)) for name in names}


def to_numpy(leaf: Any) -> np.ndarray:
    """A copy of an array in the host's memory; of random keys their data."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)
