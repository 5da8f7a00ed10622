"""What the scripts of papers' figures share: their options, and what they leave behind.

A script `figN_topic.py` computes records, shows a table with the paper's values beside
its own, and writes `figN_topic.jsonl` and `figN_topic.png`, by default into `results/`
beside itself.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import rich.console
import rich.table
import tyro

from . import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
    """How a figure is made."""

    smoke: bool = False
    """Tiny sizes, in seconds: shows that it runs, not what the paper shows."""
    output: pathlib.Path | None = None
    """Where the files go: by default results/ beside the script; --smoke: runs/."""


C = TypeVar("C", bound=Config)


def configure(
    script: str,
    doc: str | None,
    arguments: Sequence[str] | None,
    kind: type[C] = Config,
) -> C:
    """Reads the command line of a figure's script.

    Args:
      script: its `__file__`.
      doc: its docstring, the help text.
      arguments: by default those of the process.
      kind: with further options.

    Returns:
      The configuration, with an output folder that exists.
    """
    path = pathlib.Path(script)
    config = tyro.cli(
        kind,
        prog=f"python -m experiments.{path.parent.name}.{path.stem}",
        description=doc,
        args=arguments,
    )
    default = pathlib.Path("runs") if config.smoke else path.parent / "results"
    output = config.output or default
    output.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(config, output=output)


def publish(
    script: str,
    config: Config,
    records: Iterable[Mapping[str, Any]],
    tables: Sequence[rich.table.Table],
    figure: "Figure",
) -> None:
    """Writes `<script>.jsonl` and `<script>.png`, and shows the tables.

    Args:
      script: its `__file__`.
      config: from :func:`configure`.
      records: what was computed, a line each, behind one that says by what.
      tables: for people to read.
      figure: for papers to show.
    """
    assert config.output is not None
    path = config.output / pathlib.Path(script).stem
    head = {"smoke": config.smoke, **report.provenance()}
    lines = [json.dumps(record) for record in (head, *records)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    mark_figure(figure, config.smoke)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    console = rich.console.Console(width=150, highlight=False)
    for table in tables:
        console.print(mark_table(table, config.smoke))
    console.print(f"written: {path}.jsonl and .png")


SMOKE = "smoke test: tiny sizes, no results"


def mark_table(table: rich.table.Table, smoke: bool) -> rich.table.Table:
    """Says in the title that a table is of a smoke test, if it is."""
    if smoke:
        table.title = f"{table.title} ({SMOKE})"
    return table


def mark_figure(figure: "Figure", smoke: bool) -> None:
    """Says across a figure that it is of a smoke test, if it is."""
    if smoke:
        style = {"size": 24, "color": "tab:red", "alpha": 0.4}
        figure.text(0.5, 0.5, SMOKE, ha="center", va="center", rotation=20, **style)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str | None = None,
) -> rich.table.Table:
    """A table of texts and numbers.

    Args:
      title: above it.
      columns: their heads.
      rows: texts, numbers (shown with four digits), or None (shown as a dash).
      caption: below it.

    Returns:
      What :func:`publish` shows.
    """
    result = rich.table.Table(
        title=title, title_justify="left", caption=caption, caption_justify="left"
    )
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        result.add_row(*map(_show, row))
    return result


def deviation(ours: float, paper: float | None) -> str | None:
    """By how many percent a value is above the paper's, None if there is none."""
    return None if paper is None else f"{100 * (ours / paper - 1):+.1f} %"


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"
