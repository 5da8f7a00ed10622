"""Builds the site: `python -m sphinx -W docs docs/_build`.

The pages are in Markdown, written with MyST. Pages that begin with a `kernelspec` are
notebooks: their code is run while the site is built, and an error in it fails the
build, as a warning does.
"""

import datetime
import functools
import importlib.metadata
import os
import pathlib
import sys

from jupyter_cache.executors import utils as execution

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # For `public_names`.

project = "djax"
author = "The djax authors"
copyright = f"{datetime.date.today().year}, {author}"
version = release = importlib.metadata.version("djax-gossip")

extensions = [
    "myst_nb",  # Markdown and notebooks.
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # Equations are readable without a network, too.
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",  # What other sites show beside a link.
    "public_names",  # Checks, links and types of the reference.
]
exclude_patterns = ["_build", ".jupyter_cache", "jupyter_execute"]
default_role = "literal"  # Single backticks in docstrings are code.
nitpicky = True
# The sites of other libraries are not looked up, so that the site builds offline.
nitpick_ignore_regex = [
    (r"py:.*", rf"({name})(\..*)?")
    for name in (
        *("collections", "jax", "jaxlib", "matplotlib", "networkx", "np", "npt"),
        *("csr_array", "numpy", "nx", "optax", "os", "pathlib"),
        # Names for types, which are not classes.
        *("ArrayLike", "Axes", "DTypeLike", "Figure", "InitFn", "MixFn", "PyTree"),
        *("Asked", "AnchorDtype", "Averaging", "Fragments", "Memory", "Weights"),
    )
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
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # `add_types` below adds them, as the source has them.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
toc_object_entries_show_parents = "hide"

ogp_image = "_static/social.png"
ogp_site_url = os.environ.get("DJAX_SITE", "")  # Where the site will be published.

html_theme = "sphinx_book_theme"
html_title = "djax"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "logo": {"text": "djax"},
    "navbar_persistent": [],  # The sidebar has the search.
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
