"""Accuracy and size after trimming the vocabulary to the training data, alone and before structured pruning.

python benchmarks/vocabulary.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv
"""

from __future__ import annotations

from typing import Any

import niwaki
from common import Bench, arguments, environment, note
from niwaki.adapters import merge_
from niwaki.anatomy import count
from niwaki.data import Batches, read_table
from niwaki.evaluate import size_bytes
from niwaki.methods.vocabulary import retokenised, trim_vocabulary_
from niwaki.run import to_rows

SETTINGS: list[tuple[dict[str, Any], float | None]] = [
    ({}, None),
    ({"characters": "used"}, None),
    ({"min_count": 5}, None),
    ({"size": 8000}, None),
    ({"size": 5000}, None),
    ({"size": 3000, "characters": "used"}, None),
    ({}, 0.5),
]
"""What is asked of the vocabulary, and the FLOPs that are kept of the blocks afterwards."""


def main() -> None:
    asked = arguments("vocabulary", seeds=[0]).parse_args()
    bench = Bench.of(asked)
    train, evaluation = read_table(asked.train_data), read_table(asked.eval_data)
    texts, other = ([text for row in table.texts for text in row] for table in (train, evaluation))
    dense = bench.model()
    quality = bench.quality(dense)
    before = {"size_bytes": size_bytes(merge_(dense)), "embedding_params": count(dense, 1.0).embedding_params}
    found = {**environment(asked), "dense": {"quality": quality, **before}}
    for options, flops in SETTINGS:
        for seed in asked.seeds:
            model = bench.model()
            new, result = trim_vocabulary_(model, bench.tokenizer, texts, niwaki.Vocabulary(**options))
            trimmed = Bench(
                bench.name,
                new,
                to_rows(train, model, new, 128),
                Batches(to_rows(evaluation, model, new, 128), new, 64),
                bench.metric,
            )
            if flops is not None:
                niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), trimmed.batches(asked.rows, seed))
            run = {"vocabulary": options, "flops": flops, "seed": seed, "kept": result.details["kept"]}
            run |= {"seconds": result.seconds, "eval": retokenised(bench.tokenizer, new, other).to_dict()}
            run |= {"quality": trimmed.quality(model), "size_bytes": size_bytes(merge_(model))}
            note(found, run | {"embedding_params": count(model, 1.0).embedding_params}, asked.out)


if __name__ == "__main__":
    main()
