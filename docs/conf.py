"""Builds the documentation site: python -m sphinx -W --keep-going -b html docs docs/_build/html."""

import pathlib
import re
import tomllib
from importlib.metadata import version as _version

_PYPROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"
_URLS = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["urls"]

project = "optax_adadelta"
author = "The optax_adadelta authors"
copyright = f"2026, {author}"
version = release = _version("optax_adadelta")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    # Puts MathJax into the site, so that formulas show without a network.
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]

# Math between dollars and links to headings, as GitHub has them.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The text tells the types; in signatures Optax's would be spelled out over many lines.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 50
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# A link to a name that does not exist is an error, except to other packages.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(jax|numpy|optax)\..*")]

# The button copies the code of a session, without its prompts and its output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
html_theme_options = {
    # All pages are in sight at a height of 900 pixels.
    "light_css_variables": {"sidebar-item-spacing-vertical": "0.27rem"},
    "source_repository": _URLS["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view"],
    "footer_icons": [{"name": "Repository", "url": _URLS["Repository"], "html": "Repository"}],
}

# Other sites are checked with `-t external` only, which needs a network. The project's own
# addresses are left out, because they exist only once a version is published.
if tags.has("external"):  # noqa: F821 - Sphinx defines it
    linkcheck_ignore = [re.escape(url) for url in _URLS.values()]
else:
    linkcheck_ignore = [r"https?://"]


def setup(app):
    """Removes the empty line that doctest needs at the end of a block."""
    app.connect("source-read", _without_empty_last_lines)


def _without_empty_last_lines(app, name, source):
    source[0] = source[0].replace("\n\n```\n", "\n```\n")
