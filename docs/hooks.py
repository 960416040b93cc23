"""What the site does beside MkDocs, without a script.

Formulas (fences called `math`, in TeX) become MathML. The theme's search gets a name that a screen reader can say.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Give the fences of `pymdownx.superfences` one more kind."""
    fence = {"name": "math", "class": "math", "format": _formula}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def _formula(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{convert(source, display="block")}</div>'
