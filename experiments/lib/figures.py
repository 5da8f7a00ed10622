"""What the scripts of papers' figures share, so that each has only what is its own.

A script `figN_topic.py` reproduces one figure of a paper. Its function `compute` makes
records, dictionaries that JSON can hold; `make_tables` shows them beside the paper's
values; `draw` plots them. :func:`script` makes a command line of the three. It writes
`figN_topic.jsonl` and `figN_topic.png`, by default into `results/` beside the script.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
import rich.console
import rich.table
import tyro

from . import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """How a figure is made."""

    smoke: bool = False
    """Tiny sizes, in seconds: shows that it runs, not what the paper shows."""
    output: pathlib.Path | None = None
    """Where the files go: by default results/ beside the script; --smoke: runs/."""


C = TypeVar("C", bound=Config)


def script(
    name: str, parts: Any = None, *, full: tuple, smoke: tuple, x64: bool = False
) -> Callable[..., list[Record]]:
    """Makes the command line of a figure's script.

    Args:
      name: the script's `__name__`. Its docstring is what `--help` shows.
      parts: what has the functions `compute`, `make_tables` and `draw`; by default the
        script. `compute` makes the records. The others take the records, and make
        tables for people to read and the matplotlib figure.
      full: arguments of `compute`.
      smoke: arguments of `compute` in a smoke test, with tiny sizes.
      x64: whether `compute` has 64 bits a number.

    Returns:
      A function that reads its arguments or, by default, those of the process, writes
      the files, shows the tables and returns the records.
    """
    module: Any = sys.modules[name]

    def main(arguments: Sequence[str] | None = None) -> list[Record]:
        config = configure(module.__file__, module.__doc__, arguments)
        made_by = module if parts is None else parts
        with jax.enable_x64(True) if x64 else contextlib.nullcontext():
            records = made_by.compute(*(smoke if config.smoke else full))
        tables, figure = made_by.make_tables(records), made_by.draw(records)
        publish(module.__file__, config, records, tables, figure)
        return records

    return main


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
      records: what was computed. Each becomes a line of the file. The first line says
        which versions and which machine computed them.
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
    """Says in the title of a table that it is from a smoke test, if it is."""
    if smoke:
        table.title = f"{table.title} ({SMOKE})"
    return table


def mark_figure(figure: "Figure", smoke: bool) -> None:
    """Says across a figure that it is from a smoke test, if it is."""
    if smoke:
        style = {"size": 24, "color": "tab:red", "alpha": 0.4}
        figure.text(0.5, 0.5, SMOKE, ha="center", va="center", rotation=20, **style)


def panels(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> tuple["Figure", np.ndarray]:
    """Makes a figure of panels with faint grids.

    Args:
      size: width and height, in inches.
      rows: number of rows of panels.
      columns: number of columns of panels.
      **options: such as `sharey`, for matplotlib's `Figure.subplots`.

    Returns:
      The figure, and its axes, `object[rows, columns]`.
    """
    import matplotlib  # Slow to import, and of no use to whoever only wants tables.
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def handle(label: str, **style: Any) -> "Line2D":
    """An entry of a legend: a line, or a marker where `style` has one."""
    from matplotlib.lines import Line2D

    defaults: dict[str, Any] = {"ls": ""} if "marker" in style else {}
    return Line2D([], [], label=label, **defaults | style)


def circle(label: str, color: str = "gray", size: float = 4) -> "Line2D":
    """The entry of a legend for open circles, which show published values."""
    return handle(label, marker="o", mfc="none", color=color, ms=size)


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records that have all of these values."""
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def column(records: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    """The values that the records have under a key."""
    return [record[key] for record in records]


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """Rounds to significant digits, for records that would be long otherwise."""
    return [float(f"{value:.{digits}g}") for value in values]


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
