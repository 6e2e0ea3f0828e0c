"""How Sphinx makes pages of this folder: `sphinx-build docs OUT` (extra `[docs]`)."""

from __future__ import annotations

import os
import sys

from docutils.parsers.rst import Directive

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]

import reference  # noqa: E402

import cycles_lite  # noqa: E402

project = "cycles_lite"
version = release = cycles_lite.__version__
copyright = "the authors of cycles_lite"  # the theme's footer

extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"cycles_lite {version}"
html_copy_source = False
html_theme_options = {
    name + "_css_variables": {"code-font-size": "var(--font-size--small--2)"} for name in ("light", "dark")
}  # lines of 120 characters
exclude_patterns = ["_build"]

#: Docstrings mark code with single backticks.
default_role = "code"
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True

nitpicky = True
#: Base classes that are nobody's to use, names for type checkers alone, and the standard library's.
nitpick_ignore_regex = [
    ("py:class", r"cycles_lite\.(protocol|runtime|local|guards)\..*"),
    ("py:class", r"Answer|Application|Cost|Environ|Given|GuardedStream|Mode|Observer|OnUnavailable|P|T|Traceparent"),
    (
        "py:class",
        r"BalanceFilters|Budget|CollectorRegistry|Meter|datetime|ReservationFilters|Settings|Transport|Decimal|Mapping\[str",
    ),
]


class Generated(Directive):
    """`.. generated:: settings` stands for what the function `settings` of `reference.py` makes of the code."""

    required_arguments = 1

    def run(self):
        text = reference.PARTS[self.arguments[0]]()
        self.state_machine.insert_input(text.splitlines(), f"reference.py: {self.arguments[0]}")
        return []


def setup(app):
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
