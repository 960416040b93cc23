"""llama.cpp, through the bindings of cyllama: load a file, cut a text, run rows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _library() -> Any:
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    return llama_cpp


def _load(file: Path) -> Any:
    """A model of llama.cpp, on the processor."""
    library = _library()

    class Model(library.LlamaModel):
        """Says how large its vocabulary is: reading logits row by row asks a model for it, and the bindings forgot."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    options = library.LlamaModelParams()
    options.n_gpu_layers = 0
    return Model(str(file), options, verbose=False)


def tokenize(file: Path, text: str) -> list[int] | None:
    """Ids of `text` without marks by the vocabulary in `file`; None where llama.cpp does not take it."""
    try:
        model = _load(file)
    except (RuntimeError, ValueError):
        return None
    return list(model.get_vocab().tokenize(text, False, False))


class Session:
    """A GGUF file in llama.cpp, on as many threads as PyTorch has. One set of rows is held at a time."""

    def __init__(self, file: Path) -> None:
        self._model = _load(file)
        self.vocabulary: int = self._model.n_vocab
        self._context, self._room, self._lengths = None, (0, 0), []

    def start(self, rows: int, length: int) -> None:
        """Forget all tokens, and make room for `rows` of up to `length` each."""
        if self._context is None or self._room != (rows, length):
            options = _library().LlamaContextParams()
            options.n_seq_max, options.n_ctx = rows, rows * length
            options.n_batch = rows * length
            options.n_ubatch = min(512, rows * length)
            options.n_threads = options.n_threads_batch = torch.get_num_threads()
            options.kv_unified = False
            self._context = None  # the older one goes first
            self._context, self._room = _library().LlamaContext(self._model, options), (rows, length)
        self._context.kv_cache_clear(True)
        self._lengths = [0] * rows

    def feed(self, rows: list[list[int]]) -> int:
        """Run the next tokens of every row; how many there are: so many logits can be read, row after row."""
        count = sum(map(len, rows))
        batch = _library().LlamaBatch(n_tokens=count, embd=0, n_seq_max=1)
        for row, tokens in enumerate(rows):
            for token in tokens:
                batch.add(token, self._lengths[row], [row], True)
                self._lengths[row] += 1
        assert self._context is not None
        self._context.decode(batch)
        return count

    def read_row(self, length: int) -> None:
        """Run a row of so many tokens."""
        self.start(1, length)
        self.feed([[1] * length])

    def logits(self, index: int) -> Tensor:
        """Logits `[vocabulary]` of the token that was fed as number `index` of the last call."""
        assert self._context is not None
        return torch.tensor(self._context.get_logits_ith(index))
