"""Train a small language model of MobileLLM's shape on one text, for benchmarks of pruning on machines without a hub.

    python benchmarks/small_llm.py --train-data valid.txt --out small
    python benchmarks/decoders.py --model small --train-data valid.txt --eval-data test.txt --context 256 \
        --rows 128 --out benchmarks/results/wikitext.json

A byte-level BPE of 2,048 tokens; 12 layers, hidden 144, 9 query and 3 key/value heads, 384 neurons, embeddings shared:
3.1 million parameters, some minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

import niwaki
from niwaki.data import Batches
from niwaki.data.running_text import pack

VOCABULARY, CONTEXT, ROWS = 2048, 256, 16
SPECIAL = ["<s>", "</s>"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    text = asked.train_data.read_text("utf-8")
    tokenizer = tokenizer_of(text)
    batches = list(Batches(pack(text, tokenizer, CONTEXT)[0], tokenizer, ROWS))
    torch.manual_seed(asked.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=144,
            intermediate_size=384,
            num_hidden_layers=12,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    steps = asked.epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), asked.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    order = torch.Generator().manual_seed(asked.seed)
    for _ in (progress := trange(asked.epochs, desc="epochs")):
        for index in torch.randperm(len(batches), generator=order).tolist():
            loss = model(**batches[index]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        progress.set_postfix(loss=f"{float(loss):.3f}")
    niwaki.save(model.eval(), asked.out, tokenizer)


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE fitted to a text."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(text.split("\n"), VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


if __name__ == "__main__":
    main()
