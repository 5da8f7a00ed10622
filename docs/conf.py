"""Builds the site: `python -m sphinx -W --keep-going docs docs/_build`.

The pages are in Markdown, written with MyST. Pages that begin with a `kernelspec` are
notebooks: their code is run while the site is built, and an error in it fails the
build, as a warning or an undocumented public name does.
"""

import datetime
import functools
import importlib.metadata
import inspect
import os
import sys

from jupyter_cache.executors import utils as execution
from sphinx.util import logging

import djax
from djax import testing

logger = logging.getLogger(__name__)

project = "djax"
author = "The djax authors"
copyright = f"{datetime.date.today().year}, {author}"
version = release = importlib.metadata.version("djax-gossip")

extensions = [
    "myst_nb",  # Markdown and notebooks.
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",  # What other sites show beside a link.
]
exclude_patterns = ["_build", ".jupyter_cache", "jupyter_execute"]
default_role = "literal"  # Single backticks in docstrings are code.
nitpicky = True
# The sites of other libraries are not looked up, so that the site builds offline.
nitpick_ignore_regex = [
    (r"py:.*", rf"({name})(\..*)?")
    for name in ("collections", "jax", "matplotlib", "networkx", "np", "numpy", "optax")
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"  # A notebook runs again only after a change of its code.
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # Notebooks write files.
nb_execution_timeout = 300  # Seconds after which a cell counts as hanging.
nb_merge_streams = True
# The output of a shell cell comes in pieces of 100 characters. Between two pieces
# myst-nb puts a line break; nbclient joins them as they are.
execution.executenb = functools.partial(execution.executenb, coalesce_streams=True)

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

ogp_image = "_static/social.png"
ogp_site_url = os.environ.get("DJAX_SITE", "")  # Where the site will be published.

html_theme = "sphinx_book_theme"
html_title = "djax"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2}


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


def link_public_name(app, env, node, contnode):
    """Links a type of a signature, which has its private module, to its public name."""
    if node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    module, _, name = node["reftarget"].rpartition(".")
    value = getattr(sys.modules.get(module), name, None)
    for full_name, public in public_names().items():
        if public is value and full_name in python.objects:
            found = env, node["refdoc"], app.builder, "obj", full_name, node, contnode
            return python.resolve_xref(*found)
    return None


def setup(app):
    """Connects the functions above with the build."""
    app.connect("env-check-consistency", check_reference)
    app.connect("missing-reference", link_public_name)
