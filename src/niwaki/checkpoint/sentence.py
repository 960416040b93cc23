"""Sentence encoders: what a folder of Sentence Transformers holds beside the model, read and written as it was.

`modules.json` lists the modules: first the Transformer, then what makes one vector a text of its states (pooling, dense
layers, a normalisation). Those are loaded by Sentence Transformers itself, and a model carries them along (see
`niwaki.anatomy.pooling`) with their files, so that what is written is a folder of Sentence Transformers again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from niwaki.checkpoint.hub import local_folder
from niwaki.checkpoint.library import line, quiet
from niwaki.errors import RequestError

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
_FIRST = "sentence_bert_config.json"
_LEGACY = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_OURS = "sentence_transformers."
_DOCUMENTS = ("document", "passage", "corpus")
_MODES = {"mean": "mean_tokens", "cls": "cls_token"}
_OF_STATES = ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "CNN")
"""Modules that look at the states of tokens, at which of them are real, and at what such modules made, and no more."""
_AS_IS = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
}
"""How a first module reads texts and what it gives, where Niwaki does so, too: what is not said is so."""
_LAST_STATES = [
    {"method": "forward", "method_output_name": name} for name in ("last_hidden_state", ["last_hidden_state"])
]


@dataclass(frozen=True, eq=False)
class SentenceHead:
    """What a sentence encoder has beside its model: a `niwaki.anatomy.Pooling`, how texts are read, all its files.

    `longest` is the number of tokens of a text that are kept, None where that is left to the tokenizer; `lower` says
    that texts are put into lower case; `prompts` are what is put before texts, by name, of which `prompt` is the usual.
    """

    modules: tuple[nn.Module, ...]
    longest: int | None
    lower: bool
    prompts: Mapping[str, str]
    prompt: str | None
    files: Mapping[str, bytes]
    """Place in the folder -> contents."""

    def __call__(self, states: Tensor, keep: Tensor) -> Tensor:
        """One vector a text `[texts, size]` in float32 of the states of its tokens `[texts, length, width]`."""
        features: dict[str, Any] = {"token_embeddings": states.float(), "attention_mask": keep.long()}
        for module in self.modules:
            features = module.to(states.device)(features)
        return features["sentence_embedding"]

    def as_read(self, text: str, role: str | None = None) -> str:
        """A text as the model is to see it, with the prompt of its `role` (`query`, `document`) or the usual one."""
        named = {"query": ("query",), "document": _DOCUMENTS}.get(role or "", ())
        name = next((name for name in named if name in self.prompts), self.prompt)
        text = f"{self.prompts.get(name or '', '')}{text}"
        return text.lower() if self.lower else text

    def write(self, folder: Path) -> None:
        """Put all files back into a folder, which holds the model in the place of the first module."""
        for name, contents in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(contents)


def place_of_model(source: str) -> str:
    """Where the model of a folder or Hub id lies: in the folder of the first module, where there are modules."""
    folder = local_folder(source)
    inside = _listed(folder)[0]["path"] if (folder / MODULES).is_file() else ""
    return str(folder / inside) if inside else source


def is_sentence_encoder(source: str) -> bool:
    """Whether the model of a folder or Hub id is one of states, whatever head its config names.

    The config of many an encoder names the class that it was pretrained as, of which the files hold the body alone.

    Raises:
        RequestError: modules that are not those of Sentence Transformers.
    """
    folder = local_folder(source)
    if not (folder / MODULES).is_file():
        return False
    task = _reading(folder, _listed(folder)[0])[1].get("transformer_task")
    return task in (None, _AS_IS["transformer_task"])


def read_sentence_head(folder: Path) -> SentenceHead | None:
    """What is beside the model in `folder`; None where it is no folder of Sentence Transformers.

    Raises:
        RequestError: Sentence Transformers is not installed; modules that are not its own, whose weights are not in
            safetensors, that do not load, or that look at more than states of tokens; a first module that is no
            Transformer, or that does not read texts and give states as Niwaki does; none that pools.
    """
    if not (folder / MODULES).is_file():
        return None
    listed = _listed(folder)
    files = {}
    for entry in listed[1:]:
        files |= _files_of_module(folder, entry)
    reading, how = _reading(folder, listed[0])
    if reading is not None:
        _check_reading(reading, how)
    kept = [(folder / CONFIG, CONFIG)] if (folder / CONFIG).is_file() else []
    kept += [(reading, _FIRST)] if reading else []
    files |= {name: path.read_bytes() for path, name in kept}
    modules = [{**entry, "path": "" if number == 0 else entry["path"]} for number, entry in enumerate(listed)]
    files[MODULES] = json.dumps(modules, indent=2).encode()
    of_texts = _json(folder / CONFIG) if CONFIG in files else {}
    loaded = tuple(_load(folder, entry) for entry in listed[1:])
    _check_modules(folder, loaded)
    prompts = of_texts.get("prompts") or {}
    if any(prompts.values()) and not all(getattr(module, "include_prompt", True) for module in loaded):
        raise RequestError(f"model must pool its prompts like its texts, got {str(folder)!r} that leaves them out")
    return SentenceHead(
        loaded, how.get("max_seq_length"), bool(how.get("do_lower_case")), prompts,
        of_texts.get("default_prompt_name"), files,
    )  # fmt: skip


def first_sentence_head(folders: Iterable[Path]) -> SentenceHead | None:
    """What is beside the model in the first of these folders that is one of Sentence Transformers."""
    return next((head for head in map(read_sentence_head, folders) if head is not None), None)


def plain_pooling(mode: str, width: int, longest: int) -> SentenceHead:
    """Pooling by `mode` (`niwaki.config.requests.POOLINGS`) and nothing else, for a model of this width and context."""
    names = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"))
    modules = [
        {"idx": number, "name": name, "path": path, "type": f"{_OURS}models.{kind}"}
        for number, (name, path, kind) in enumerate(names)
    ]
    modes = {f"pooling_mode_{name}": name == _MODES[mode] for name in ("cls_token", "mean_tokens", "max_tokens")}
    files = {
        MODULES: modules,
        _FIRST: {"max_seq_length": longest, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
    }
    with tempfile.TemporaryDirectory(prefix="niwaki-") as place:
        for name, contents in files.items():
            (Path(place) / name).parent.mkdir(exist_ok=True)
            (Path(place) / name).write_text(json.dumps(contents, indent=2), encoding="utf-8")
        head = read_sentence_head(Path(place))
    assert head is not None
    return head


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The entries of `modules.json`, whose places are inside the folder and whose classes are of the library."""
    listed = _json(folder / MODULES)
    rule = f"{MODULES} of {str(folder)!r} must list modules of Sentence Transformers, each with its type and path"
    if not isinstance(listed, list) or not listed:
        raise RequestError(f"{rule}, got {listed!r}"[:400])
    for entry in listed:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("type", "path")):
            raise RequestError(f"{rule}, got {entry!r}")
        if not entry["type"].startswith(_OURS):
            raise RequestError(f"model must load without code of its own, which is never run, got {entry['type']!r}")
        if not (folder / entry["path"]).resolve().is_relative_to(folder.resolve()):
            raise RequestError(f"{rule}, inside the folder, got {entry['path']!r}")
    if not listed[0]["type"].endswith(".Transformer"):
        raise RequestError(f"model must begin with a Transformer, got {listed[0]['type']!r} in {str(folder)!r}")
    return listed


def _reading(folder: Path, entry: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The file that says how the first module reads texts, if there is one, and what it says.

    Raises:
        RequestError: it is no object of JSON.
    """
    first = folder / entry["path"]
    known = [_FIRST, *(_FIRST.replace("bert", name) for name in _LEGACY)]
    path = next((first / name for name in known if (first / name).is_file()), None)
    how = {} if path is None else _json(path)
    if not isinstance(how, dict):
        raise RequestError(f"model file {str(path)!r} must be an object of JSON, got {how!r}"[:400])
    return path, how


def _check_reading(path: Path, how: dict[str, Any]) -> None:
    """Refuse a first module that reads texts in another way than Niwaki, or gives what are not its last states.

    Raises:
        RequestError: with the key, and what it would have to be.
    """
    found = {key: how[key] for key in _AS_IS if how.get(key) is not None}
    kwargs = found.get("processing_kwargs")
    if isinstance(kwargs, dict):  # empty ones say nothing
        found["processing_kwargs"] = {name: options for name, options in kwargs.items() if options}
    wrong = next((key for key, value in found.items() if value != _AS_IS[key]), None)
    if wrong is not None:
        raise RequestError(f"{wrong} in {str(path)!r} must be {_AS_IS[wrong]!r} or not there, got {found[wrong]!r}")
    of_text = (how.get("modality_config") or {"text": _LAST_STATES[0]}).get("text")
    if of_text not in _LAST_STATES:
        rule = f"modality_config in {str(path)!r} must give {_LAST_STATES[0]!r} of text"
        raise RequestError(f"{rule}, got {of_text!r}")


def _check_modules(folder: Path, loaded: tuple[nn.Module, ...]) -> None:
    """Refuse modules that look at what they are not given here: one would fail, or do nothing without a word.

    Raises:
        RequestError: naming the first; none of them pools.
    """
    names = [type(module).__name__ for module in loaded]
    rule = f"model must make its vectors of the last states of tokens, by {', '.join(_OF_STATES)}"
    strange = next((name for name in names if name not in _OF_STATES), None)
    if strange is not None:
        raise RequestError(f"{rule}, got {strange} in {str(folder)!r}")
    if "Pooling" not in names:
        raise RequestError(f"{rule}, with a Pooling among them, got {', '.join(names) or 'none'} in {str(folder)!r}")


def _files_of_module(folder: Path, entry: dict[str, Any]) -> dict[str, bytes]:
    place = folder / entry["path"]
    files = [path for path in place.rglob("*") if path.is_file()] if entry["path"] else []
    unsafe = [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]
    if unsafe and not any(path.suffix == ".safetensors" for path in files):
        raise RequestError(f"model must hold safetensors weights, got {str(unsafe[0])!r}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path not in unsafe}


def _load(folder: Path, entry: dict[str, Any]) -> nn.Module:
    try:
        from sentence_transformers.util import import_from_string
    except ImportError as error:
        rule = "model of Sentence Transformers must be read with that library: pip install 'niwaki[sentence]'"
        raise RequestError(f"{rule}, got {str(folder)!r} without it") from error
    try:
        with quiet():
            kind: Any = import_from_string(entry["type"])
            module = kind.load(str(folder), subfolder=entry["path"], local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise RequestError(
            f"model must hold modules that load, got {entry['type']!r} in {str(folder)!r}: {line(error)}"
        ) from error
    return module.eval().requires_grad_(False)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"model file {str(path)!r} must be JSON, got {line(error)}") from error
