"""An extension of Sphinx for the reference, which has each public name once.

* A public name that no page documents is a warning, which fails the build.
* An object of djax may have several names, since its module is private or since two
  modules offer it. All of them become links to the one that is documented.
* Types of arguments are shown as the source spells them.
"""

import ast
import inspect
import re
import sys
import textwrap
import typing
from collections import abc

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging

import djax
from djax import testing

logger = logging.getLogger(__name__)


def public_names():
    """Returns what the names that users may call stand for, by their full names."""
    modules = [djax, testing, *filter(inspect.ismodule, public_of(djax).values())]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in public_of(module).items()
    }


def public_of(module):
    """Returns what the names in a module's `__all__` stand for."""
    return {name: getattr(module, name) for name in module.__all__}


def check_reference(app, env):
    """Warns of public names whose object no page documents under any name."""
    del app
    documented, public = env.get_domain("py").objects, public_names()
    there = {id(value) for name, value in public.items() if name in documented}
    for name, value in public.items():
        if id(value) not in there:
            logger.warning("docs/reference lacks %s", name)


def documented_name(name, env):
    """Returns the name under which the object of this name is documented, or None.

    An object may have several names: its module is private, or two modules offer it.
    """
    documented = env.get_domain("py").objects
    module, _, last = name.rpartition(".")
    value = getattr(sys.modules.get(module), last, None)
    same = (x for x, public in public_names().items() if public is value is not None)
    return name if name in documented else next(filter(documented.get, same), None)


def link_public_name(app, env, node, contnode):
    """Links the other names of a public object, such as types of private modules."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    for name in (target, f"{node.get('py:module')}.{target}"):
        if found := documented_name(name, env):
            return link(app, node["refdoc"], found, contnode)
    return None


def link_literals(app, doctree, page):
    """Links names in backticks, such as `djax.gossip`, to the reference."""
    for node in list(doctree.findall(nodes.literal)):
        name = re.fullmatch(r"(djax(\.\w+)+)(\(\))?", node.astext())
        is_link = isinstance(node.parent, (nodes.reference, addnodes.pending_xref))
        if name and not is_link and (found := documented_name(name[1], app.env)):
            node.replace_self(link(app, page, found, node.deepcopy()))


def link(app, page, name, content):
    """Returns the link of a page to an object that the reference documents."""
    python = app.env.get_domain("py")
    found = app.env, page, app.builder, "obj", name, addnodes.pending_xref()
    return python.resolve_xref(*found, content)


class _WithPublicNames(ast.NodeTransformer):
    """Writes types with their full names, of which Sphinx shows the last part."""

    def __init__(self, known):
        self.known = known
        self.public = {id(value): name for name, value in public_names().items()}

    def visit_Name(self, node):
        """Replaces `Graph` by `~djax.topologies.Graph`, for example."""
        value = self.known.get(node.id)
        if typing.get_origin(value) is typing.Literal:
            return ast.Name(f"~{value!r}")
        if id(value) in self.public:
            return ast.Name(f"~{self.public[id(value)]}")
        standard = getattr(typing, node.id, None) or getattr(abc, node.id, None)
        if value is not None and value is standard:
            return ast.Name(f"~{value.__module__}.{node.id}")
        return node


def types_of(obj):
    """Returns the types of a function's or class's arguments, and of what it returns.

    The types are the text that the source has for them. Sphinx itself would look at
    what the names stand for, such as a union of nine types for `ArrayLike`.
    """
    obj = inspect.unwrap(obj)
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    except (OSError, TypeError):  # Python has generated the function.
        return {}
    known = vars(inspect.getmodule(obj))
    found = {"return": getattr(tree, "returns", None)}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.setdefault(node.arg, node.annotation)
        if isinstance(node, ast.AnnAssign):
            found.setdefault(ast.unparse(node.target), node.annotation)
    return {name: as_text(node, known) for name, node in found.items() if node}


def as_text(annotation, known):
    """Returns a type of the source as text with full names."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return ast.unparse(_WithPublicNames(known).visit(annotation))


def add_types(app, what, name, obj, options, lines):
    """Adds the types of the source to the arguments that a docstring describes."""
    del app, name, options
    if what == "property":  # Napoleon takes the words before a colon for a type.
        lines[:] = (inspect.getdoc(obj) or "").splitlines()
    if what not in ("class", "exception", "function", "method"):
        return
    types = types_of(obj)
    for i, line in reversed(list(enumerate(lines))):
        found = re.match(r":param (\w+):", line)
        if found and found[1] in types:
            lines.insert(i, f":type {found[1]}: {types[found[1]]}")


def add_returned_type(app, what, name, obj, options, arguments, returned):
    """Adds the type that the source has for what a function returns."""
    del app, name, options, returned
    if what in ("function", "method") and (text := types_of(obj).get("return")):
        return arguments, text
    return None


def setup(app):
    """Connects the functions above with the build."""
    app.connect("autodoc-process-docstring", add_types, priority=600)  # After napoleon.
    app.connect("autodoc-process-signature", add_returned_type)
    app.connect("doctree-resolved", link_literals)
    app.connect("env-check-consistency", check_reference)
    app.connect("missing-reference", link_public_name)
