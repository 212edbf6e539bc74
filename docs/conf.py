"""Builds the documentation site: python -m sphinx -W --keep-going -b html docs docs/_build/html."""

from importlib.metadata import version as _version

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
]
exclude_patterns = ["_build"]

# Math between dollars and links to headings, as GitHub has them.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The text tells the types; in signatures Optax's would be spelled out over many lines.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
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
linkcheck_ignore = [r"https?://"]


def setup(app):
    """Removes the empty line that doctest needs at the end of a block."""
    app.connect("source-read", _without_empty_last_lines)


def _without_empty_last_lines(app, name, source):
    source[0] = source[0].replace("\n\n```\n", "\n```\n")
