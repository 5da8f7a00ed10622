"""Makes command lines, tables and pictures for the scripts of papers' figures.

A script `figN_topic.py` reproduces one figure of a paper. Its function `compute` makes
records, which are dictionaries that JSON can hold. Its function `make_tables` shows
them beside the paper's values, and `draw` plots them. :func:`script` makes a command
line from the three functions. It writes `figN_topic.jsonl` and `figN_topic.png`, by
default into `results/` beside the script.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import rich.console
import rich.table
import tyro

from . import processes, report
from .report import panels as panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """How a figure is made."""

    smoke: bool = False
    """Use tiny sizes, to see in seconds that the script runs; results mean nothing."""
    output: pathlib.Path | None = None
    """Folder of the files; by default results/ beside the script, runs/ with --smoke.
    """

    def path(self, script: str) -> pathlib.Path:
        """Returns the path of the files of the script `__file__`, without suffixes."""
        assert self.output is not None, "`configure` sets it"
        return self.output / pathlib.Path(script).stem


C = TypeVar("C", bound=Config)


def script(
    name: str, parts: Any = None, *, full: tuple, smoke: tuple, x64: bool = False
) -> Callable[..., list[Record]]:
    """Makes the command line of a figure's script, which returns the records.

    The script's `__name__` is `name`, and its docstring the text of `--help`. The
    functions `compute`, which makes or yields the records, `make_tables` and `draw` are
    those of the script, or of `parts`. The arguments of `compute` are `full` or, with
    `--smoke`, `smoke`.
    """
    module: Any = sys.modules[name]

    def main(arguments: Sequence[str] | None = None) -> list[Record]:
        config = configure(module.__file__, module.__doc__, arguments)
        made_by = module if parts is None else parts
        with jax.enable_x64(True) if x64 else contextlib.nullcontext():
            records = list(made_by.compute(*(smoke if config.smoke else full)))
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
    """Reads the command line of a figure's script, and keeps what it compiles."""
    processes.keep_compiled()
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

    The first line of the file says which versions and which machine computed the
    records. Each record is a further line.
    """
    path = config.path(script)
    head = {"smoke": config.smoke, **report.provenance()}
    lines = [json.dumps(record) for record in (head, *records)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    show(path, tables, figure, config.smoke)


SMOKE = "smoke test: tiny sizes, no results"


def show(
    path: pathlib.Path,
    tables: Sequence[rich.table.Table],
    figure: "Figure",
    smoke: bool,
) -> None:
    """Saves a figure as `<path>.png`, prints tables, and marks all from smoke tests."""
    if smoke:
        style = {"size": 24, "color": "tab:red", "alpha": 0.4}
        figure.text(0.5, 0.5, SMOKE, ha="center", va="center", rotation=20, **style)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    print_tables(tables, smoke)
    print(f"written: {path}.jsonl and .png")


def print_tables(tables: Sequence[rich.table.Table], smoke: bool) -> None:
    """Prints tables, whose titles say whether they are from a smoke test."""
    console = rich.console.Console(width=150, highlight=False)
    for table in tables:
        if smoke:
            table.title = f"{table.title} ({SMOKE})"
        console.print(table)


def handle(label: str, **style: Any) -> "Line2D":
    """Makes an entry of a legend: a line, or a marker if `style` has one."""
    from matplotlib.lines import Line2D

    defaults: dict[str, Any] = {"ls": ""} if "marker" in style else {}
    return Line2D([], [], label=label, **defaults | style)


def circle(label: str, color: str = "gray", size: float = 4) -> "Line2D":
    """Makes the entry of a legend for open circles, which show published values."""
    return handle(label, marker="o", mfc="none", color=color, ms=size)


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """Returns the records that have all of these values."""
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def column(records: Iterable[Record], key: str, **values: Any) -> list[Any]:
    """Returns what is under a key of the records that have all of these values."""
    return [record[key] for record in select(records, **values)]


def distinct(records: Iterable[Record], key: str) -> list[Any]:
    """Returns the different values under a key, in the order of the records."""
    return list(dict.fromkeys(column(records, key)))


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """Rounds to significant digits, which makes the lines of records shorter."""
    return [float(f"{value:.{digits}g}") for value in values]


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str | None = None,
) -> rich.table.Table:
    """Makes a table of texts, numbers (shown with four digits), and None (a dash)."""
    result = rich.table.Table(
        title=title, title_justify="left", caption=caption, caption_justify="left"
    )
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        result.add_row(*map(_show, row))
    return result


def deviation(ours: float, paper: float | None) -> str | None:
    """Returns by how many percent a value is above the paper's."""
    return None if paper is None else f"{100 * (ours / paper - 1):+.1f} %"


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"
