"""The tokenizer of a model as a GGUF file holds it: found by trial, as llama.cpp has to cut texts as it does."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.checkpoint import as_loaded
from niwaki.errors import RequestError
from niwaki.export.gguf.llama_cpp import tokenize
from niwaki.export.gguf.splits import NAMES, PROBE, trial_of


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, their kinds (`gguf.TokenType`), and how text becomes them.

    `scores` are for those that merge by the token that comes of it, `merges` for those that merge by pairs.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    space_first: bool = False
    split: str | None = None

    def add_to(self, writer: Any) -> None:
        """Tell `writer`, a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        if self.split is not None:
            writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        writer.add_add_space_prefix(self.space_first)


def add_vocabulary(writer: Any, tokenizer: Any, size: int, endings: list[int]) -> None:
    """Tell `writer` the `tokenizer`, its marks and its chat template; `size` rows of embeddings are there.

    `endings` are the ids that end a text by the model's configuration. Without a tokenizer there are token ids alone.

    Raises:
        RequestError: a tokenizer that llama.cpp does not cut texts as.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    _found(tokenizer, size).add_to(writer)
    for name in ("bos", "eos", "unk", "sep", "pad"):
        token = getattr(as_loaded(tokenizer), f"{name}_token_id", None)
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    more = [token for token in endings if token != tokenizer.eos_token_id]
    for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), more, strict=False):
        add(token)
    bare, marked = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    writer.add_add_bos_token(bool(marked) and marked[0] == tokenizer.bos_token_id and marked[:1] != bare[:1])
    writer.add_add_eos_token(bool(marked) and marked[-1] == tokenizer.eos_token_id and marked[-1:] != bare[-1:])
    if tokenizer.chat_template:
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(template)


def _found(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary that makes llama.cpp cut `PROBE` as the tokenizer does."""
    wanted = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    candidates = _candidates(tokenizer, size)
    with tempfile.TemporaryDirectory() as place:
        for number, vocabulary in enumerate(candidates):
            file = Path(place) / f"{number}.gguf"
            _write_alone(vocabulary, file)
            if tokenize(file, PROBE) == wanted:
                return vocabulary
            file.unlink()
    rule = "to gguf needs a tokenizer that llama.cpp cuts text as"
    raise RequestError(f"{rule}, got {type(tokenizer).__name__}, whose cuts of a trial text it does not make")


def _candidates(tokenizer: Any, size: int) -> list[Vocabulary]:
    """What the tokenizer may be called, likely names first."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {"model": {"type": type(tokenizer).__name__}}
    if told["model"]["type"] != "BPE":
        rule = "to gguf needs a tokenizer that merges pairs (BPE), at byte level or with byte fallback"
        raise RequestError(f"{rule}, got one of the kind {told['model']['type']}")
    tokens, kinds = _tokens(tokenizer, told, size)
    pairs = told["model"]["merges"]
    if not told["model"]["byte_fallback"]:
        merges = [" ".join(pair) for pair in pairs]
        splits = _splits(backend, bool(told["model"].get("ignore_merges")))
        return [Vocabulary("gpt2", tokens, kinds, merges=merges, split=split) for split in splits]
    # What merges by the token that comes of it has the order of the first pair that it comes of.
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    scores = [-float(ranks.get(token, len(pairs))) for token in tokens]
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    return [Vocabulary("llama", tokens, kinds, scores=scores, space_first=first[0].startswith("▁"))]


def _splits(backend: Any, ignore_merges: bool) -> list[str]:
    """The names of the rules by which llama.cpp splits as `backend` does."""
    from gguf import TokenType

    tokens, pairs, wanted = trial_of(backend, ignore_merges)
    kinds, merges, found = [int(TokenType.NORMAL)] * len(tokens), [" ".join(pair) for pair in pairs], []
    with tempfile.TemporaryDirectory() as place:
        for name in NAMES:
            file = Path(place) / f"{name}.gguf"
            _write_alone(Vocabulary("gpt2", tokens, kinds, merges=merges, split=name), file)
            if tokenize(file, PROBE) == wanted:
                found.append(name)
    return found


def _tokens(tokenizer: Any, told: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Token and kind of every id below `size`; ids without a token are said to be unused."""
    from gguf import TokenType

    known = {index: token for token, index in tokenizer.get_vocab().items()}
    if known and max(known) >= size:
        rule = "tokenizer must have no more tokens than the model has embeddings for to gguf"
        raise RequestError(f"{rule}, got {max(known) + 1} and {size}")
    added = {entry["id"]: entry for entry in told["added_tokens"]}
    fallback, unknown = told["model"]["byte_fallback"], told["model"].get("unk_token")
    tokens, kinds = [], []
    for index in range(size):
        token = known.get(index)
        if token is None:
            kind = TokenType.UNUSED
        elif fallback and token == unknown:
            kind = TokenType.UNKNOWN
        elif index in added:
            kind = TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
        elif fallback and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        tokens.append(f"[PAD{index}]" if token is None else token)
        kinds.append(int(kind))
    return tokens, kinds


def _write_alone(vocabulary: Vocabulary, file: Path) -> None:
    """A file with a vocabulary, and the smallest model that the bindings load."""
    from gguf import GGUFWriter

    writer, width = GGUFWriter(file, "llama"), 2
    for add in (writer.add_block_count, writer.add_head_count):
        add(1)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(width)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary.add_to(writer)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}": (width, width) for name in square}
    shapes |= {"token_embd": (len(vocabulary.tokens), width)}
    shapes |= dict.fromkeys(("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"), (width,))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
