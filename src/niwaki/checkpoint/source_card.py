"""What the card beside a model says that is true of whatever is made of it: its licence, its language, its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HFValidationError

CARRIED = ("license", "license_name", "license_link", "language")


def source_card(source: str) -> dict[str, Any]:
    """`CARRIED` of the card of a local folder or a Hub repository, and `base_model`; what is not known is left out.

    The base of what is made of a Hub model is that model; of a local one it is what its card says.
    """
    local = Path(source).exists()
    try:
        file = Path(source) / "README.md" if local else Path(hf_hub_download(source, "README.md"))
        said = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, HFValidationError, yaml.YAMLError):
        said = {}
    base = said.get("base_model") if local else source
    carried = {name: said[name] for name in CARRIED if said.get(name)}
    return carried | ({"base_model": base} if base and not _is_local(base) else {})


def _is_local(base: Any) -> bool:
    """Whether a base is named by a place on somebody's disk, which tells nobody else anything."""
    names = base if isinstance(base, list) else [base]
    return any(str(name).startswith((".", "/", "~")) or Path(str(name)).exists() for name in names)
