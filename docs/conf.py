"""Sphinx configuration."""

from captum_mi import __version__

project = "captum_mi"
author = "the captum_mi developers"
copyright = "2026, the captum_mi developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "captum_mi"
html_static_path = ["_static"]
exclude_patterns = ["_build"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False
