"""Which of llama.cpp's rules of splitting a byte-level tokenizer has.

llama.cpp knows the rules by which such tokenizers split text before they merge by a name, and the tokenizer does not
say it. So names are tried, in llama.cpp itself, and with a vocabulary that is made for it, in which no split can hide:
each piece of the text is a token, and so are two that stand side by side. A small vocabulary, a trimmed one say, spells
text with single bytes, whatever the rule is.
"""

from __future__ import annotations

import itertools
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

NAMES = (
    *("gpt-2", "llama-bpe", "qwen2", "smollm", "starcoder", "tekken", "gpt-4o", "falcon", "deepseek-llm", "olmo"),
    *("deepseek-coder", "deepseek-v3", "command-r", "stablelm2", "smaug-bpe", "glm4", "exaone", "refact", "default"),
)
"""Names that llama.cpp has for rules of splitting, those of well-known models first."""
PROBE = (
    "The gardener's pine isn't old: it's 127 years, 3 months and 14 days; she'd pruned it 1,024 times, WE'LL say.\n"
    "  Two spaces,   three\tand a tab.\n\n\nCafé, naïve, Straße, Ελλάδα, Москва, 日本の庭木 2026年, 한국어, ไทย 🌲🌳!\n"
    "def prune(model, *, flops=0.5):\r\n    return model['layers'][0].heads != None  # e.g. $x_1 + y^2$ (50%)\n"
)
"""A text of what tokenizers split differently."""
_BARE = 4
"""Of every so many pieces one is a token that no merges make: it shows whether whole pieces are looked up first."""


def trial_of(backend: Any, ignore_merges: bool) -> tuple[list[str], list[tuple[str, str]], list[int]]:
    """Tokens and merges of a vocabulary that shows how `backend` splits `PROBE`, and the ids it gives with it.

    `ignore_merges`: pieces that are tokens are not merged.
    """
    text = backend.normalizer.normalize_str(PROBE) if backend.normalizer else PROBE
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
    merges: dict[tuple[str, str], None] = {}
    for index, piece in enumerate(dict.fromkeys(pieces)):
        ends = range(1, len(piece)) if index % _BARE else ()
        merges |= dict.fromkeys((piece[:end], piece[end]) for end in ends)
    merges |= dict.fromkeys(itertools.pairwise(pieces))
    made = [*pieces, *(first + second for first, second in merges)]
    tokens = list(dict.fromkeys([*sorted({*ByteLevel.alphabet(), *"".join(pieces)}), *made]))
    trial = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, list(merges), ignore_merges=ignore_merges))
    trial.normalizer, trial.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    return tokens, list(merges), trial.encode(PROBE, add_special_tokens=False).ids
