"""Modules import downwards only, and `import djax` imports little that it may not need.

There is no cycle of imports, not even of types alone.
"""

import ast
import pathlib
import re
import sys

import launch
import networkx as nx
import pytest

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


def test_djax_imports_some_modules_only_when_they_are_used():
    """What a new process has imported after `import djax`, and after a first use."""
    later = ("networkx", "scipy", "matplotlib", "jax.extend", "djax.asynchronous")
    program = (
        "import sys, djax\n"
        f"print([name for name in {later} if name in sys.modules])\n"
        "topology = djax.topologies.ring(4)\n"
        "from djax import asynchronous\n"
        "print(djax.acid is asynchronous.acid, 'networkx' in sys.modules)\n"
    )
    result = launch.run(sys.executable, "-c", program, timeout=60)
    assert result.stdout == "[]\nTrue True\n", result.stderr


def test_names_that_are_imported_later_are_those_of_their_package():
    names = set(djax.asynchronous.__all__) & set(djax.__all__)
    assert {"acid", "adpsgd", "acid_constants"} <= names
    for name in names:
        assert getattr(djax, name) is getattr(djax.asynchronous, name)


def test_a_name_that_djax_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'djax' has no attribute 'gosip'"):
        djax.gosip  # noqa: B018
