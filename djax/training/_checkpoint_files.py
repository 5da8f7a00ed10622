"""Writes the checkpoints of one process so that they survive a kill at any moment.

What a process saves at one training step becomes a folder with one zip archive. The
checksums of the archive are verified whenever it is read. A folder is written under a
temporary name and gets its final name when it is complete; a kill cannot interrupt a
renaming halfway. A separate thread writes the folders, so that the training does not
wait for the disk.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from djax._arrays.keys import is_key
from djax.transport import say

PART = ".part"
"""Suffix of the names of files and folders that are not complete."""
_FILE = "checkpoint.zip"


class CheckpointError(ValueError):
    """The checkpoints cannot be used; raised on all processes, with a one-line text."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """What one process saved at one step, as read from the disk.

    Attributes:
      arrays: the bytes of each array.
      kinds: dtype and shape of each array as a text, such as `float32[2, 3]`.
      content: the JSON value that was saved with the arrays.
    """

    arrays: list[bytes]
    kinds: list[str]
    content: Any

    def restore(
        self, like: Sequence[np.ndarray], where: pathlib.Path
    ) -> list[np.ndarray]:
        """Turns the saved bytes into arrays of the expected shapes and dtypes.

        Args:
          like: arrays that have the expected shapes and dtypes.
          where: the folder of the checkpoints, which the error names.

        Raises:
          CheckpointError: if arrays of other shapes or dtypes were saved.
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
    """Reads, writes and removes the saved steps of one process.

    A thread of its own writes and removes. This thread does not keep the process alive:
    if the process ends without calling `close`, steps that are not yet written are
    lost.

    Args:
      folder: the folder of this process, in which each saved step is a folder.

    Attributes:
      folder: the same folder.
      held: the steps that are completely written. Any thread may read this set. Once
        the writing thread has started, no other thread may change it.
      failures: one line of text for each step that could not be written.
    """

    def __init__(self, folder: pathlib.Path):
        """Makes the object without touching the disk."""
        self.folder = folder
        self.held: frozenset[int] = frozenset()
        self.failures: list[str] = []
        self._said = 0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def find(self) -> list[int]:
        """Returns the complete steps on the disk, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def prepare(self) -> None:
        """Makes the folder, and removes incomplete folders that a kill left in it.

        If the folder has no complete step, a step 0 without arrays is written.

        Raises:
          OSError: if the folder cannot be made or changed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"*{PART}"):
            shutil.rmtree(path)
        if not self.find():
            self._write_files(0, [], None)

    def read(self, step: int) -> Saved:
        """Reads a step.

        Raises:
          CheckpointError: if the step is damaged, or cannot be read.
        """
        path = self.folder / str(step)
        try:
            with zipfile.ZipFile(path / _FILE) as archive:
                head = json.loads(archive.read("head.json"))
                names = [f"{i:05d}" for i in range(len(head["kinds"]))]
                arrays = [archive.read(name) for name in names]
            return Saved(arrays, head["kinds"], head["content"])
        except Exception as error:  # Damaged bytes can raise anything.
            raise CheckpointError(
                f"checkpoint {path} is damaged ({one_line(error)})"
            ) from None

    def write(self, step: int, arrays: Sequence[np.ndarray], content: Any) -> None:
        """Hands a step to the writing thread, after earlier requests are finished.

        Args:
          step: number of the step. If this step was saved before, it is replaced.
          arrays: the arrays to write. The caller must not change them afterwards.
          content: a value to write with the arrays; it has to be valid JSON.
        """
        self.wait_until_written()
        self._do(lambda: self._write(step, arrays, content))

    def remove(self, steps: Iterable[int]) -> None:
        """Asks the thread to remove steps, after all earlier requests."""
        for step in sorted(steps):
            self._do(lambda step=step: self._remove(step))

    def wait_until_written(self) -> None:
        """Waits until the thread has finished all requests."""
        self._jobs.join()

    def complain(self) -> None:
        """Reports each failure to write a step on stderr, once."""
        for text in self.failures[self._said :]:
            self._said += 1
            last = f"the last one is of step {max(self.held, default=0)}"
            say(f"checkpoint not saved: {text}; the run goes on, {last}")

    def close(self) -> None:
        """Waits until everything is written, and ends the thread."""
        self.wait_until_written()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

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
            self.failures.append(f"step {step} in {self.folder}: {one_line(error)}")
            with contextlib.suppress(OSError):
                for path in self.folder.glob(f"{step}{PART}"):
                    shutil.rmtree(path)
                (self.folder / str(step) / (_FILE + PART)).unlink(missing_ok=True)

    def _write_files(self, step: int, arrays: Sequence[np.ndarray], content) -> None:
        """Writes a step under a temporary name, and renames it when it is complete."""
        final = self.folder / str(step)
        if final.is_dir():  # A rename cannot replace a full folder, but can its file.
            _write_archive(final / (_FILE + PART), arrays, content)
            (final / (_FILE + PART)).replace(final / _FILE)
            _sync(final)
            return
        part = self.folder / f"{step}{PART}"
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        _write_archive(part / _FILE, arrays, content)
        _sync(part)
        part.rename(final)
        _sync(self.folder)

    def _remove(self, step: int) -> None:
        self.held -= {step}
        path, part = self.folder / str(step), self.folder / f"{step}.old{PART}"
        with contextlib.suppress(OSError):  # A step that stays only takes up space.
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
    """Writes a folder's entries to disk, so that renames survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type's name."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def parts_of(leaf: Any) -> list[np.ndarray]:
    """Copies what this process has of an array to the host's memory.

    This is the whole array, or its distinct shards if other processes have parts of it.
    """
    if not (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return [to_numpy(leaf)]
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return [np.array(shard.data) for shard in _shards(leaf).values()]


def places_of(leaves: Sequence[Any]) -> list[np.ndarray]:
    """Says where in the arrays the shards are that :func:`parts_of` copies.

    Returns:
      One array with a text, or nothing if this process has all of each array.
    """
    places = [
        list(_shards(jax.random.key_data(leaf) if is_key(leaf) else leaf))
        for leaf in leaves
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ]
    text = json.dumps(places).encode()
    return [np.frombuffer(text, np.uint8)] if places else []


def from_parts(parts: Sequence[np.ndarray], like: jax.Array) -> jax.Array:
    """Undoes :func:`parts_of`: returns an array like `like`, and on its devices."""
    if like.is_fully_addressable:
        (array,) = parts
        return from_numpy(array, like)
    data = jax.random.key_data(like) if is_key(like) else like
    found = dict(zip(_shards(data), parts, strict=True))
    array = jax.make_array_from_callback(
        data.shape, data.sharding, lambda index: found[_place(index, data.shape)]
    )
    if is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return array


def _shards(x: jax.Array) -> dict[tuple[tuple[int, ...], ...], Any]:
    """Returns the distinct shards of this process, by their places, in order."""
    found = {_place(shard.index, x.shape): shard for shard in x.addressable_shards}
    return dict(sorted(found.items(), key=lambda item: item[0]))


def _place(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(part.indices(n) for part, n in zip(index, shape, strict=True))


def to_numpy(leaf: Any) -> np.ndarray:
    """Copies an array to the host's memory; for random keys, copies their key data."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def from_numpy(array: Any, like: jax.Array) -> jax.Array:
    """Undoes :func:`to_numpy`: returns an array like `like`, and on its devices.

    Args:
      array: the array of NumPy, or the key data if `like` is an array of random keys.
      like: an array of JAX, with any numbers.
    """
    if is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jax.device_put(array, like.sharding)
