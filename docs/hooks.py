"""What the site does beside MkDocs: formulas (fences called `math`, in TeX) become MathML, without a script."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Give the fences of `pymdownx.superfences` one more kind."""
    fence = {"name": "math", "class": "math", "format": _formula}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def _formula(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{convert(source, display="block")}</div>'
