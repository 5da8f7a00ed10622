"""Defines the options of checkpoints on the command line."""

import dataclasses
import pathlib
from collections.abc import Mapping

from djax.training import Checkpoints

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Saving:
    """Says where and when the workers are saved."""

    checkpoints: pathlib.Path | None = None
    """Folder for checkpoints of every worker. Without it workers are saved only when
    SIGTERM or Ctrl-C ends the run, in the run's own folder, and workers of a2cid2 and
    adpsgd are not saved at all."""
    checkpoint_every: float = 600.0
    """Seconds between two checkpoints."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept; older ones are deleted."""
    resume: bool = False
    """Continue from the last checkpoint, if there is one."""

    def make(self, identity: Mapping[str, str]) -> Checkpoints | None:
        """Makes djax's description of the checkpoints; None if no folder is given."""
        if self.checkpoints is None:
            return None
        return Checkpoints(
            self.checkpoints,
            self.checkpoint_every,
            self.keep_checkpoints,
            self.resume,
            identity,
        )


def check_saving(options: Saving) -> None:
    """Raises UsageError for options that do not fit together."""
    if options.checkpoints is None and options.resume:
        raise UsageError("--resume needs the folder: --checkpoints.")
