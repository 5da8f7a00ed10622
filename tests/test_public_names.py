"""`dir`, completion and `help` show the public names, with docstrings and types."""

import importlib
import inspect
import pydoc
import re

import pytest

import djax

PACKAGES = [
    "djax",
    "djax.accounting",
    "djax.aliases",
    "djax.asynchronous",
    "djax.communicators",
    "djax.compressors",
    "djax.corrections",
    "djax.data",
    "djax.mechanisms",
    "djax.metrics",
    "djax.mixing",
    "djax.optimizers",
    "djax.simulation",
    "djax.testing",
    "djax.theory",
    "djax.topologies",
    "djax.training",
]
each_package = pytest.mark.parametrize("package", PACKAGES)


def public(package):
    """The names in `__all__` of a module of djax, with what they stand for."""
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def functions_of(value):
    """A function, or the public methods and properties that a class of djax defines."""
    if inspect.isfunction(value):
        yield value
    if not inspect.isclass(value) or not value.__module__.startswith("djax"):
        return
    for name, member in vars(value).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        for attribute in ("__func__", "fget", "func"):  # As a decorator calls it.
            member = getattr(member, attribute, member)
        # What `typing.Protocol` puts into its classes is not djax's.
        if inspect.isfunction(member) and member.__module__.startswith("djax"):
            yield member


@each_package
def test_dir_shows_the_public_names(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


@each_package
def test_nothing_that_a_module_defines_is_left_out(package):
    module = importlib.import_module(package)
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == package
        and (inspect.isfunction(value) or inspect.isclass(value))
    }
    assert defined <= set(module.__all__)


def test_the_names_of_all_algorithms_are_those_of_djax():
    for package in ("aliases", "corrections", "mechanisms", "optimizers"):
        for name, value in public(f"djax.{package}").items():
            assert getattr(djax, name) is value


@each_package
def test_help_lists_the_functions(package):
    text = pydoc.plain(pydoc.render_doc(importlib.import_module(package)))
    for name, value in public(package).items():
        if inspect.isfunction(value):
            assert f"\n    {name}(" in text, name
        elif inspect.isclass(value):
            assert f"class {name}" in text, name


@each_package
def test_public_names_have_docstrings(package):
    for name, value in public(package).items():
        if inspect.ismodule(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
        elif inspect.isclass(value):
            own = vars(value).get("__doc__") or ""
            # NamedTuples and dataclasses get their signature where nobody wrote one.
            assert own and not own.startswith(f"{value.__name__}("), name
        for function in functions_of(value):
            if not function.__name__.startswith("_"):
                assert inspect.getdoc(function), function.__qualname__


def section(doc, title):
    """The indented lines below a title of a docstring; empty if there is no title."""
    found = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", f"{doc}\n", re.MULTILINE)
    return found.group(1) if found else ""


@each_package
def test_public_functions_say_what_they_take(package):
    """Each argument once, in the order of the signature, below the title `Args:`."""
    for function in filter(inspect.isfunction, public(package).values()):
        doc, signature = inspect.getdoc(function), inspect.signature(function)
        told = re.findall(r"^  \*{0,2}(\w+):", section(doc, "Args"), re.MULTILINE)
        assert told == list(signature.parameters), function


def test_the_reading_of_docstrings_finds_arguments_below_their_title_alone():
    doc = (
        "A sum.\n\nArgs:\n  x: a number.\n  y: one more,\n    if any.\n\nReturns:\n  A."
    )
    assert section(doc, "Args") == "  x: a number.\n  y: one more,\n    if any.\n\n"
    assert section(doc, "Returns") == "  A.\n"
    assert section("A sum.\n\n  x: a number.\n  x: a number.", "Args") == ""


@each_package
def test_public_signatures_are_annotated(package):
    for value in public(package).values():
        for function in functions_of(value):
            signature = inspect.signature(function)
            lacking = [
                parameter.name
                for place, parameter in enumerate(signature.parameters.values())
                if parameter.annotation is parameter.empty
                and (place, parameter.name) not in ((0, "self"), (0, "cls"))
            ]
            if function.__name__ != "__init__":
                lacking += ["return"] * (signature.return_annotation is signature.empty)
            assert not lacking, f"{function.__qualname__}: {lacking}"


def test_the_reading_finds_functions():
    names = {f.__qualname__ for f in functions_of(djax.topologies.Topology)}
    assert {"Topology.size", "Topology.rounds_at", "Topology.plot"} <= names
