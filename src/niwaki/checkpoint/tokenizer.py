"""Load the tokenizer of a model, make the two agree on padding, and write it as it came.

A tokenizer remembers how it was called last (to how many tokens texts are cut), and is set up for the work here (to
pad, to cut words). What is written is for others, who have not asked for that: so what cuts texts here is a copy, which
knows the one that it was made of.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import transformers
from tokenizers import normalizers
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from niwaki.anatomy import CLASSIFIER, family_of, task_of, unwrap
from niwaki.checkpoint.adapter import base_of
from niwaki.checkpoint.hub import beside, local_folder
from niwaki.checkpoint.library import line
from niwaki.checkpoint.sentence import place_of_model
from niwaki.config.text import place_named
from niwaki.errors import RequestError

_AS_LOADED = "_niwaki_as_loaded"


def as_loaded(tokenizer: Any) -> Any:
    """The tokenizer as it is written: the one that `load_tokenizer` made a copy of, any other itself."""
    return getattr(tokenizer, _AS_LOADED, tokenizer)


def is_written_as_(tokenizer: Any, loaded: Any) -> Any:
    """`tokenizer`, which is to be written as `loaded` is."""
    setattr(tokenizer, _AS_LOADED, loaded)
    return tokenizer


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a tokenizer into an existing folder, `as_loaded`."""
    as_loaded(tokenizer).save_pretrained(folder)


def load_tokenizer(
    source: str | Path,
    base_model: str | None = None,
    *,
    of_words: bool = False,
    new_head: bool = False,
    padding: bool = False,
) -> Any:
    """The tokenizer of a model folder or Hub id; of an adapter without one, its base model's.

    With `of_words` it is to cut words that are given one by one: where it tells them from pieces by the space before
    them, each is taken to have one, and it is written so where a `new_head` learns it. With `padding` the end of a text
    pads where nothing else does, as masks hide it.

    Raises:
        RequestError: no files of a tokenizer, or one that needs code of its own.
    """
    source = place_of_model(place_named("model", source))
    folder = local_folder(source)
    if (folder / "adapter_config.json").is_file() and beside(folder, "tokenizer_config.json") is None:
        base = base_of(folder, base_model)
        return load_tokenizer(base, of_words=of_words, new_head=new_head, padding=padding)
    try:
        _check_own_code(source)
        loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer = copy.deepcopy(loaded)
        if of_words and not getattr(tokenizer, "add_prefix_space", True):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, add_prefix_space=True)
            if new_head:
                _space_before_words_(tokenizer)
                loaded = copy.deepcopy(tokenizer)
        tokenizer("a")  # what is damaged may load, and fail at the first text
        # Without files Transformers makes one that knows no word.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise RequestError(f"model must have tokenizer files, got {source!r} without a vocabulary")
    except RequestError:
        raise
    except (
        BaseException
    ) as error:  # of any class: the Rust of tokenizers has none of its own, and panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise RequestError(f"{_OWN_CODE}, got {source!r} that needs it") from error
        raise RequestError(f"model must have tokenizer files, got {source!r}: {line(error)}") from error
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if strange := [name for name in templates if Path(name).name != name]:
        raise RequestError(f"chat templates must have names that files can have, got {source!r} with {strange[0]!r}")
    if padding and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return is_written_as_(tokenizer, loaded)


def _space_before_words_(tokenizer: Any) -> None:
    """Have a byte-level tokenizer put a space before every word where its class only notes that it is to.

    The classes of a family do it themselves; what is written as `PreTrainedTokenizerFast` (ModernBERT, Llama 3) does as
    its `tokenizer.json` says.
    """
    bytes_only = tokenizer.is_fast and "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer)
    if type(tokenizer) is not PreTrainedTokenizerFast or not bytes_only:
        return
    one_by_one = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    if one_by_one != tokenizer("a a", add_special_tokens=False)["input_ids"]:
        backend = tokenizer.backend_tokenizer
        steps = [normalizers.Prepend(" "), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)


_OWN_CODE = "tokenizer must load without code of its own, which is never run"


def _check_own_code(source: str) -> None:
    """Refuse a class that comes as code with its files: Transformers would take one of its own in its place."""
    config = get_tokenizer_config(source)
    named = config.get("tokenizer_class")
    if config.get("auto_map") and named and not hasattr(transformers, named):
        raise RequestError(f"{_OWN_CODE}, got {source!r} whose {named} needs it")


def agree_on_padding_(model: nn.Module, tokenizer: Any, new_head: bool = False) -> str | None:
    """Make a decoder that classifies find the last token of a row in padded batches; says what was changed.

    Such a model takes its answer at the last token that is not the padding id of its config. Where its tokenizer pads
    with another, the tokenizer takes the model's, so that a row alone has the answer it always had; where the model's
    config has none, or one that no token has, the config takes the tokenizer's, and for a `new_head` one that pads with
    the end of a text will do. Other models go by the attention mask.

    Raises:
        RequestError: neither pads; the model's padding id is a word; a text that ends with the tokenizer's padding,
            which the model would no longer see.
    """
    inner = unwrap(model)
    if task_of(model) is not CLASSIFIER or not family_of(inner).causal:
        return None
    config = cast(Any, inner.config)
    asked, padding = config.pad_token_id, tokenizer.pad_token_id
    if asked == padding and asked is not None:
        return None
    rows = cast(Any, inner.get_input_embeddings()).weight.shape[0]
    if asked is None or not 0 <= asked < min(rows, len(tokenizer)):
        if padding is None and new_head and tokenizer.eos_token is not None:
            _pad_with_(tokenizer, tokenizer.eos_token)
            padding = tokenizer.pad_token_id
        if padding is None:
            rule = "pad_token_id of the model's config, or its tokenizer, must say how rows are padded"
            raise RequestError(f"{rule}, got {asked!r} and no pad_token")
        if not new_head and tokenizer("a")["input_ids"][-1:] == [padding]:
            rule = "pad_token_id of the config of a decoder that classifies must be given, as every text ends with"
            raise RequestError(f"{rule} its tokenizer's {tokenizer.pad_token!r}, got {asked!r}")
        config.pad_token_id = padding
        return f"pad_token_id of its config is {padding}, its tokenizer's (it was {asked})"
    if asked not in tokenizer.all_special_ids:
        token = tokenizer.convert_ids_to_tokens(asked)
        rule = "pad_token_id of the config of a decoder that classifies must be its tokenizer's, or another special one"
        raise RequestError(f"{rule}, got {asked}, which is {token!r}, and {padding} of the tokenizer")
    _pad_with_(tokenizer, tokenizer.convert_ids_to_tokens(asked))
    return f"rows are padded with id {asked}, as its config says (its tokenizer's was {padding})"


def _pad_with_(tokenizer: Any, token: str) -> None:
    """Have a tokenizer pad with a token, here and where it is written."""
    for each in (tokenizer, as_loaded(tokenizer)):
        each.pad_token = token
