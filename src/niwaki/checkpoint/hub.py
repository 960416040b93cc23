"""What Niwaki writes beside a model's weights, found on the Hub too, where Transformers fetches what it knows alone."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError

_BESIDE = ["adapter/**", "adapter_config.json", "adapter_model.safetensors", "masks.safetensors", "modules.json"]
_SENTENCES = ["sentence_*_config.json", "config_sentence_transformers.json", "[0-9]*_*/*"]
"""What Sentence Transformers has beside its `modules.json`: how texts are read, a folder a module."""
_MODEL = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def local_folder(source: str) -> Path:
    """`source` if it is a folder; else the cached folder of that Hub repository, with its adapter, masks, modules.

    Such files are fetched; with an adapter inside a model's folder (`keep_adapter`) the model and its tokenizer too.
    What is no repository, or cannot be reached, is given back as it is, for Transformers to say so.
    """
    if Path(source).exists():
        return Path(source)
    try:
        folder = Path(snapshot_download(source, allow_patterns=_BESIDE))
        if (folder / "modules.json").is_file():
            folder = Path(snapshot_download(source, allow_patterns=[*_BESIDE, *_SENTENCES]))
        if (folder / "adapter").is_dir():
            folder = Path(snapshot_download(source, allow_patterns=[*_BESIDE, *_MODEL]))
    except (OSError, ValueError, HFValidationError):
        return Path(source)
    return folder if any((folder / pattern.removesuffix("/**")).exists() for pattern in _BESIDE) else Path(source)


def beside(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`; fetched where that is a folder of the Hub cache without it. None if there is none.

    A cached folder is `<cache>/models--<owner>--<name>/snapshots/<commit>`, or one inside.
    """
    if (folder / name).is_file():
        return folder / name
    parts = folder.parts
    if "snapshots" not in parts[:-1]:
        return None
    at = len(parts) - 1 - parts[::-1].index("snapshots")
    kind, _, repository = parts[at - 1].partition("--")
    if kind != "models":
        return None
    try:
        file = hf_hub_download(
            repository.replace("--", "/"),
            "/".join([*parts[at + 2 :], name]),
            revision=parts[at + 1],
            cache_dir=Path(*parts[: at - 1]),
        )
    except (OSError, ValueError):
        return None
    return Path(file)
