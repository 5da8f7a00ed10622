"""The runs of a study in a file, from which a study goes on and its figure is drawn."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from . import report
from .tables import Table, score


class Ledger:
    """The runs of a study, a line each, behind one that says by what they were made.

    Args:
      path: the file.
      smoke: whether they are tiny; those start anew each time.

    Attributes:
      path: as given.
      name: of the study.
      smoke: whether what is there is tiny.
      records: what is there.
    """

    def __init__(self, path: pathlib.Path, smoke: bool):
        """Reads it, or begins it."""
        self.path, self.name = path, path.stem
        if smoke or not path.exists():
            head = {"smoke": smoke, **report.provenance()}
            path.write_text(json.dumps(head) + "\n")
        head, *self.records = map(json.loads, path.read_text().splitlines())
        self.smoke = bool(head.get("smoke"))

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The record that has these values, if there is one."""
        return next(iter(select(self.records, **values)), None)

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def select(records: Iterable[dict], **values: Any) -> list[dict[str, Any]]:
    """The records that have these values."""
    return [r for r in records if all(r[key] == value for key, value in values.items())]


_CURVES = ("epoch", "time", "loss", "worst", "mean", "averaged", "consensus_distance")


def digest(table: Table, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: its score, and how it came about.

    Args:
      table: says what the score is.
      result: `history`, `megabytes`, and the `error` of a training that diverged.
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
