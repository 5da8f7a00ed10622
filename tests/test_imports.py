"""Modules import downwards only: there is no cycle, not even of types alone."""

import ast
import pathlib
import re

import networkx as nx

import djax

ROOT = pathlib.Path(djax.__file__).parent


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imported(name, path):
    """The modules of djax that a module names in an import, wherever it stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            names = [
                name if (name := f"{base}.{alias.name}") in MODULES else base
                for alias in node.names
            ]
        else:
            continue
        yield from (found for found in names if found in MODULES)


def graph_of_imports():
    """An edge from each module to those that it names in an import."""
    graph = nx.DiGraph()
    for name, path in MODULES.items():
        graph.add_edges_from((name, found) for found in imported(name, path))
    return graph


def test_there_is_no_cycle():
    cycles = [sorted(c) for c in nx.strongly_connected_components(graph_of_imports())]
    assert not [cycle for cycle in cycles if len(cycle) > 1]


def test_there_is_no_cycle_between_folders():
    between = nx.DiGraph()
    for one, other in graph_of_imports().edges:
        rooms = [name.split(".")[1:2] for name in (one, other)]
        if all(rooms) and rooms[0] != rooms[1]:
            between.add_edge(*(room for (room,) in rooms))
    assert "mechanisms" in between
    assert nx.is_directed_acyclic_graph(between), nx.find_cycle(between)


def test_folders_import_from_those_above_them_in_contributing():
    lines = (ROOT.parent / "CONTRIBUTING.md").read_text().splitlines()
    rows = [re.findall(r"`djax/(\w+)", line) for line in lines if line[:7] == "| `djax"]
    place = {name: number for number, row in enumerate(rows) for name in row}
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert {room for room in rooms if room[0] != "_"} == place.keys()
    for one, other in graph_of_imports().edges:
        room, needed = ((*name.split("."), "")[1] for name in (one, other))
        if room in place and needed in place:
            assert place[needed] <= place[room], f"{one} imports {other}"


def test_the_reading_finds_imports():
    graph = graph_of_imports()
    assert ("djax.mixing._alternate", "djax._counting") in graph.edges
    assert ("djax.mechanisms._gossip", "djax.mixing") in graph.edges
    assert ("djax", "djax.mechanisms") in graph.edges
