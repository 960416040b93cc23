"""A tokenizer with fewer tokens: its `tokenizer.json` with the others taken out and the ids numbered anew.

Tokens keep their order. What names a token by its id says the new one: the vocabulary, added tokens, the unknown piece
of Unigram, the padding, the post-processor. Normalizers, pre-tokenizers and decoders name tokens by their text.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from niwaki.errors import RequestError
from niwaki.methods.vocabulary.needed import KINDS, entries_of


def description_of(tokenizer: Any) -> dict[str, Any]:
    """The `tokenizer.json` of a tokenizer.

    Raises:
        RequestError: a tokenizer that has none, or whose kind cannot be trimmed.
    """
    rule = "tokenizer must be a fast one (a tokenizer.json) for its vocabulary to be trimmed"
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(f"{rule}, got {type(tokenizer).__name__}")
    try:
        found = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # parts written in Python cannot be told as JSON
        raise RequestError(f"{rule}, got one that cannot be written: {' '.join(str(error).split())}") from error
    kind = found["model"].get("type")
    if kind not in KINDS:
        raise RequestError(f"tokenizer must be one of {', '.join(KINDS)} for its vocabulary to be trimmed, got {kind}")
    if found["model"].get("dropout"):
        rule = "tokenizer must be without BPE dropout for its vocabulary to be trimmed"
        raise RequestError(f"{rule}, got {found['model']['dropout']:g}")
    return found


def named_ids(description: dict[str, Any]) -> set[int]:
    """Ids of the tokens that a `tokenizer.json` names outside its vocabulary: added tokens and special ones."""
    found = {token["id"] for token in description["added_tokens"]}
    _renumber_(copy.deepcopy(description), lambda index: found.add(index) or index)
    return found


def order_of(description: dict[str, Any], kept: set[int]) -> list[int]:
    """The old ids in the order of the new ones. Added tokens that the model does not hold come last, as always."""
    inside = {index for _, index in entries_of(description["model"])}
    return sorted(kept, key=lambda index: (index not in inside, index))


def trimmed(tokenizer: Any, description: dict[str, Any], order: list[int]) -> Any:
    """A tokenizer of the same class whose token `i` is the old token `order[i]`.

    Raises:
        RequestError: the class does not let its tokens be numbered so.
    """
    new = {old: index for index, old in enumerate(order)}
    description = copy.deepcopy(description)
    model = description["model"]
    kept = [(token, index) for token, index in entries_of(model) if index in new]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][index] for _, index in kept]
    else:
        model["vocab"] = {token: new[index] for token, index in kept}
    if "merges" in model:
        skipped = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            (first, second)
            for first, second in model["merges"]
            if {first, second, first + second[skipped:]} <= model["vocab"].keys()
        ]
    for token in description["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_(description, new.__getitem__)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
        made = type(tokenizer).from_pretrained(folder)
    made.init_kwargs["name_or_path"] = tokenizer.name_or_path
    for name in ("name_or_path", "padding_side", "truncation_side", "model_input_names"):  # may be set since it loaded
        setattr(made, name, getattr(tokenizer, name))
    rule = "tokenizer must let its tokens be numbered anew for its vocabulary to be trimmed"
    if len(made) != len(order):
        raise RequestError(f"{rule}, got a {type(tokenizer).__name__} of {len(made)} for {len(order)} tokens")
    before, after = tokenizer.convert_ids_to_tokens(order), made.convert_ids_to_tokens(range(len(order)))
    for index, (token, found) in enumerate(zip(before, after, strict=True)):
        if token != found:
            raise RequestError(f"{rule}, got {token!r} of {type(tokenizer).__name__} at another id than {index}")
    return made


def _renumber_(description: dict[str, Any], new: Callable[[int], int]) -> None:
    """Replace the ids by which the padding, the model and the post-processor name tokens."""
    if description["padding"]:
        description["padding"]["pad_id"] = new(description["padding"]["pad_id"])
    if description["model"].get("unk_id") is not None:
        description["model"]["unk_id"] = new(description["model"]["unk_id"])
    if description["post_processor"]:
        _renumber_processor_(description["post_processor"], new)


def _renumber_processor_(processor: dict[str, Any], new: Callable[[int], int]) -> None:
    match processor["type"]:
        case "Sequence":
            for part in processor["processors"]:
                _renumber_processor_(part, new)
        case "TemplateProcessing":
            for token in processor["special_tokens"].values():
                token["ids"] = [new(index) for index in token["ids"]]
        case "BertProcessing" | "RobertaProcessing":
            for key in ("sep", "cls"):
                token, index = processor[key]
                processor[key] = [token, new(index)]
        case "ByteLevel":
            pass
        case other:
            raise RequestError(f"tokenizer must have a post-processor that is known, got {other}")
