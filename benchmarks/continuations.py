"""What pruned language models know and say: questions by choice and greedy text, beside the dense model's.

    python benchmarks/decoders.py --model M ... --keep PRUNED
    python benchmarks/continuations.py --model M --pruned "flops 0.8=PRUNED/flops-0.8-default-0" --eval-data test.txt

A question is the beginning of a paragraph of the text; the choices are how it goes on, and how three other paragraphs
do at the same place. Nothing is sampled: `acc` takes the likeliest ending, and a continuation the likeliest token.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch

import niwaki
from common import RESULTS, environment, write
from niwaki.checkpoint import load_tokenizer
from niwaki.data.questions import Question
from niwaki.evaluate import encode_questions, greedy, multiple_choice

BEFORE, AFTER, CHOICES = 32, 8, 4
"""Words of a question's prompt and of each ending, and how many endings there are."""
BEGINNINGS = (
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "Water is made of",
    "To bake a loaf of bread, you first",
    "The river flows from the mountains to the",
    "In 1969, the first man",
    "My favourite season is winter, because",
    "A computer program is a list of",
    "The doctor told her that",
    "If it rains tomorrow, we will",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the dense one")
    parser.add_argument("--pruned", nargs="+", default=[], help="NAME=FOLDER of each model beside it")
    parser.add_argument("--eval-data", required=True, help="a text, a paragraph a line")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=32, help="of each continuation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "continuations.json")
    asked = parser.parse_args()
    tokenizer = load_tokenizer(asked.model)
    questions = questions_of(Path(asked.eval_data).read_text("utf-8"), asked.questions, asked.seed)
    pairs = encode_questions(tokenizer, questions)
    found: dict[str, Any] = {
        **environment(asked),
        "questions": len(questions),
        "example": vars(questions[0]),
        "runs": [],
    }
    for name, folder in (("dense", asked.model), *(word.split("=", 1) for word in asked.pruned)):
        model = niwaki.load(folder)
        scores = multiple_choice(model, questions, pairs, 16)
        run = {
            "model": name,
            **{metric: {"value": mean.value, "stderr": mean.stderr} for metric, mean in scores.items()},
            "continuations": {start: continued(model, tokenizer, start, asked.tokens) for start in BEGINNINGS},
        }
        found["runs"].append(run)
        print(json.dumps(run, indent=1), flush=True)
        write(asked.out, found)


def questions_of(text: str, count: int, seed: int) -> list[Question]:
    """So many questions of the paragraphs that are long enough, no two of one."""
    draw = random.Random(seed)
    paragraphs = [words for words in map(str.split, text.splitlines()) if len(words) >= BEFORE + AFTER]
    endings = [" ".join(words[BEFORE : BEFORE + AFTER]) for words in paragraphs]
    questions = []
    for place in draw.sample(range(len(paragraphs)), count):
        others = draw.sample([other for other in range(len(paragraphs)) if other != place], CHOICES - 1)
        choices = draw.sample([place, *others], CHOICES)
        prompt = " ".join(paragraphs[place][:BEFORE])
        questions.append(Question(prompt, tuple(endings[choice] for choice in choices), choices.index(place)))
    return questions


def continued(model: Any, tokenizer: Any, start: str, tokens: int) -> str:
    """The likeliest token after the start, again and again."""
    ids = torch.tensor(tokenizer(start)["input_ids"])
    return tokenizer.decode(greedy(model, ids, tokens), skip_special_tokens=True)


if __name__ == "__main__":
    main()
