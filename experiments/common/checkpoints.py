"""What a synchronous run saves, so that it goes on where it was cut off."""

import dataclasses
import json
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import djax
from djax.simulation import Workers

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where and when the workers are saved; needs orbax."""

    checkpoints: pathlib.Path | None = None
    """Folder for checkpoints of every worker. Without it they are saved, in the run's
    own folder, only when SIGTERM ends the run, and those of a2cid2 and adpsgd not at
    all."""
    checkpoint_every: float = 600.0
    """Seconds between them."""
    keep_checkpoints: int = 2
    """How many are kept, the last ones."""
    resume: bool = False
    """Go on from the last one, if there is one."""


def check_saving(options: Saving) -> None:
    """Raises UsageError for options that do not fit together.

    Args:
      options: from the command line.
    """
    if options.checkpoints is None and options.resume:
        raise UsageError("--resume needs the folder: --checkpoints.")
    if not 0 < options.checkpoint_every < float("inf"):
        raise UsageError(
            f"--checkpoint-every {options.checkpoint_every} must be positive."
        )
    if options.keep_checkpoints < 1:
        raise UsageError(
            f"--keep-checkpoints {options.keep_checkpoints} must be at least 1."
        )


class Saver:
    """Saves and restores the workers of this process.

    Each process has a folder of its own. What is there counts from the last step that
    all processes have saved, so that a run may be killed at any time.

    Args:
      options: where and when.
      communicator: where the workers live.
      identity: what two runs must have in common for one to go on with the other's
        workers, as texts.

    Attributes:
      folder: where the checkpoints are.
      latest: the step of the last one, None if there is none.
    """

    def __init__(
        self,
        options: Saving,
        communicator: djax.Communicator,
        identity: Mapping[str, str],
    ):
        """Looks for checkpoints.

        Raises:
          UsageError: on all processes alike, if there are some that are not to be
            resumed, or that are of another run.
        """
        self._options, self._communicator = options, communicator
        self._identity, self._saved = dict(identity), time.monotonic()
        self._manager: Any = None
        self.folder = self.latest = None
        if options.checkpoints is not None:
            self.folder = options.checkpoints.absolute()
            self.latest = self._find(self.folder)

    def fall_back(self, folder: pathlib.Path) -> None:
        """Names the folder, where the options name none."""
        self.folder = self.folder or folder.absolute()

    def _find(self, folder: pathlib.Path) -> int | None:
        """The last step that all processes have; newer ones are removed."""
        names = {path.name for path in folder.glob("workers_*_of_*")}
        own = self._own_folder(folder)
        steps = self._open(own).all_steps() if own.name in names else []
        local = self._communicator.local_ranks
        everyones = self._communicator.gather([(own.name, names, steps)] * len(local))
        expected = {name for name, _, _ in everyones}
        others = set().union(*(names for _, names, _ in everyones)) - expected
        if others:
            raise UsageError(
                f"--checkpoints {folder} is of a run with other processes, "
                f"{min(others)}; choose another folder."
            )
        if not any(steps for _, _, steps in everyones):
            return None
        if not self._options.resume:
            raise UsageError(
                f"--checkpoints {folder} has some already; add --resume to go on from "
                "the last one, or choose another folder."
            )
        common = set.intersection(*(set(steps) for _, _, steps in everyones))
        if common:
            self._compare(folder)
        latest = max(common, default=-1)
        for step in steps:
            if step > latest:  # Others were killed before they had saved it.
                self._manager.delete(step)
        return latest if common else None

    def _own_folder(self, folder: pathlib.Path) -> pathlib.Path:
        local = self._communicator.local_ranks
        name = f"workers_{local[0]}-{local[-1]}_of_{self._communicator.size}"
        return folder / name

    def _compare(self, folder: pathlib.Path) -> None:
        """Raises UsageError unless the checkpoints are of this configuration."""
        saved = json.loads((folder / "identity.json").read_text())
        for key, value in self._identity.items():
            if saved.get(key) != value:
                flag = key.rsplit(".", 1)[-1].replace("_", "-")
                raise UsageError(
                    f"--checkpoints {folder} is of a run with --{flag} "
                    f"{saved.get(key)}, this one has {value}; choose another folder."
                )

    def _open(self, own: pathlib.Path) -> Any:
        if self._manager is None:
            ocp = _orbax()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._options.keep_checkpoints, create=True
            )
            self._manager = ocp.CheckpointManager(own, options=options)
        return self._manager

    @property
    def due(self) -> bool:
        """Whether it is time to save; another process may see it otherwise."""
        past = time.monotonic() - self._saved
        return (
            self._options.checkpoints is not None
            and past >= self._options.checkpoint_every
        )

    def save(self, step: int, workers: Workers, progress: Mapping[str, Any]) -> None:
        """Copies the workers, and writes them behind the caller's back.

        Args:
          step: how many they have done.
          workers: of this process.
          progress: what else has to be known, that JSON can hold.
        """
        ocp = _orbax()
        assert self.folder is not None
        self._saved = time.monotonic()
        path = self.folder / "identity.json"
        if 0 in self._communicator.local_ranks and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self._identity, indent=2) + "\n")
            part.replace(path)
        arrays = jax.tree.leaves(jax.tree.map(_to_numpy, workers))
        self._open(self._own_folder(self.folder)).save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(dict(_numbered(arrays))),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
        )

    def restore(self, like: Workers) -> tuple[Workers, dict[str, Any]]:
        """Reads the latest checkpoint.

        Args:
          like: workers of the same shapes.

        Returns:
          The workers, and the progress that was saved with them.
        """
        ocp = _orbax()
        leaves, structure = jax.tree.flatten(like)
        arrays = dict(_numbered(map(_to_numpy, leaves)))
        found = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(arrays),
                progress=ocp.args.JsonRestore(),
            ),
        )
        restored = [
            _from_numpy(found["arrays"][name], leaf)
            for name, leaf in zip(arrays, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, restored), found["progress"]

    def close(self) -> None:
        """Waits until everything is written."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ModuleNotFoundError:
        raise UsageError(
            'checkpoints need orbax: pip install "djax-gossip[asynchronous]".'
        ) from None
    return orbax.checkpoint


def _numbered(leaves) -> Iterator[tuple[str, Any]]:
    """Names for leaves; states of optimizers have no names that could be kept."""
    return ((f"{i:05d}", leaf) for i, leaf in enumerate(leaves))


def _to_numpy(leaf: Any) -> np.ndarray:
    """A copy; of random keys their data."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def _from_numpy(array: Any, like: Any) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jax.device_put(array, like.sharding)


class Termination:
    """Hears SIGTERM, by which schedulers announce that a job's time is over.

    A context manager; outside of it, and in threads other than the main one, the signal
    does what it did before.

    Args:
      listen: False for one that hears nothing.

    Attributes:
      requested: whether it came.
    """

    def __init__(self, *, listen: bool = True):
        """Nothing was heard."""
        self.requested, self._listens = False, listen
        self._before: Any = None

    def __enter__(self) -> "Termination":
        """Starts to listen."""
        main = threading.current_thread() is threading.main_thread()
        if self._listens and main:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def _hear(self, number, frame):
        self.requested = True

    def __exit__(self, *error: object) -> None:
        """Stops."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
