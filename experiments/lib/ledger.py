"""Keeps the runs of a study in a file, so that the study can be continued and drawn."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from . import figures, report
from .tables import Table, score


class Ledger:
    """A file with a line for each run of a study.

    The first line says which versions and which machine computed the runs.
    """

    def __init__(self, path: pathlib.Path, smoke: bool):
        """Reads the file if there is one, and else begins it."""
        self.path, self.name = path, path.stem
        if smoke or not path.exists():
            head = {"smoke": smoke, **report.provenance()}
            path.write_text(json.dumps(head) + "\n")
        head, *self.records = map(json.loads, path.read_text().splitlines())
        self.smoke = bool(head.get("smoke"))

    def find(self, **values: Any) -> dict[str, Any] | None:
        """Returns the record that has these values, or None."""
        return next(iter(figures.select(self.records, **values)), None)

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record to the file."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


_CURVES = ("epoch", "time", "loss", "worst", "mean", "averaged", "consensus_distance")


def digest(table: Table, result: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the record of a run: its score, and the curves of its training.

    Args:
      result: the `history` of the run, the `megabytes` that a worker sent, and the
        `error` of a training that diverged, else None.
    """
    history = result["history"]
    curves = {
        key: [float(f"{record[key]:.5g}") for record in history]
        for key in _CURVES
        if history and key in history[-1]
    }
    failed = result["error"] is not None
    return {
        "score": None if failed else score(table, history),
        "megabytes": result["megabytes"],
        "error": result["error"],
        "scores": history[-1]["scores"] if history else [],
        **curves,
    }
