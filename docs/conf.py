"""Settings of the documentation's site. `python -m sphinx -W --keep-going docs site` builds it into site/."""

import re
import sys
from pathlib import Path
from typing import Any

import hopinterp

sys.path.insert(0, str(Path(__file__).parent))
import generated

project = "hopinterp"
author = "The hopinterp authors"
release = version = hopinterp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
nitpicky = True  # a name that leads nowhere is a warning, and warnings are errors
default_role = "code"  # docstrings write `names` as Markdown does
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_type_aliases = {"ModelLike": "ModelLike", "Hops": "Hops"}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"hopinterp {release}"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

COLON, NO_SPACE = "\0", "\u200b"
NOT_OURS = ("Tensor", "HookedTransformer", "Path", "Card", "Table", "ModelLike", "Hops")
PUBLIC: dict[str, str] = {}
"""Where a public name is defined, and by which name it is documented."""
for _name in dir(hopinterp):
    _object = getattr(hopinterp, _name)
    if hasattr(_object, "__qualname__"):
        PUBLIC[f"{_object.__module__}.{_object.__qualname__}"] = f"hopinterp.{_name}"


def plain_text(_app: Any, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Make our docstrings reStructuredText, with colons hidden where napoleon would read a type before them.

    |Σ| is no substitution, `name`s has an end, and "low, high: …" documents two names at once.
    """
    section = ""
    for i, line in enumerate(lines):
        if not line.startswith(" ") and line.endswith(":"):
            section = line
        line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)
        line = re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line)
        if (i == 0 and what in ("attribute", "data", "property")) or section == "Returns:" != line:
            line = line.replace(":", COLON)
        if names := re.match(r"    \w+(, \w+)+(?=: )", line) if section in ("Args:", "Attributes:") else None:
            line = names[0].replace(", ", "," + NO_SPACE) + line[names.end() :]
        lines[i] = line


def colons(_app: Any, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Put back the colons that `plain_text` hid from napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def aliases(*given: Any) -> tuple[str | None, str | None]:
    """Write an alias by its name where autodoc writes what stands for it."""
    signature, returned = (re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) if text else text for text in given[-2:])
    return signature, returned


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead a type to the page of its public name; leave others that exist, ours or another package's, as words."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    name = target if target in PUBLIC.values() else PUBLIC.get(target, f"hopinterp.{target}")
    if name in PUBLIC.values() and node.get("refdoc"):
        node["reftarget"] = name
        return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    known = re.fullmatch(
        r"(hopinterp|torch|xarray|xr|numpy|networkx|nx|jaxtyping|collections|pathlib|matplotlib|rich)\..+", target
    )
    return content if known or target in NOT_OURS or re.fullmatch("'[a-z 0-9_*]+'", target) else None


def fill(_app: Any, _page: str, source: list[str]) -> None:
    """Put generated text where a page asks for it: {{ commands }}, {{ notebooks }}, {{ api ROOM }}."""
    source[0] = re.sub(
        r"\{\{ (commands|notebooks|api) ?([\w.]*) \}\}",
        lambda asked: getattr(generated, asked[1])(*filter(None, [asked[2]])),
        source[0],
    )


def setup(app: Any) -> None:
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # napoleon stands at 500
    app.connect("autodoc-process-docstring", colons, priority=600)
    app.connect("autodoc-process-signature", aliases)
    app.connect("missing-reference", resolve)
