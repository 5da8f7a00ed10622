"""Options of checkpoints on the command line."""

import dataclasses
import pathlib
from collections.abc import Mapping

from djax.training import Checkpoints

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where and when the workers are saved."""

    checkpoints: pathlib.Path | None = None
    """Folder for checkpoints of every worker. Without it they are saved, in the run's
    own folder, only when SIGTERM or Ctrl-C ends the run, and those of a2cid2 and adpsgd
    not at all."""
    checkpoint_every: float = 600.0
    """Seconds between them."""
    keep_checkpoints: int = 2
    """How many are kept, the last ones."""
    resume: bool = False
    """Go on from the last one, if there is one."""

    def make(self, identity: Mapping[str, str]) -> Checkpoints | None:
        """Returns what djax needs to know; None if there is no folder.

        Args:
          identity: what a run must have in common with the run that it goes on with.
        """
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
    """Raises UsageError for options that do not fit together.

    Args:
      options: from the command line.
    """
    if options.checkpoints is None and options.resume:
        raise UsageError("--resume needs the folder: --checkpoints.")
