"""What a model is worth as it stands: quality, latency, size."""

from niwaki.evaluate.answers import check_questions
from niwaki.evaluate.behaviour import behaviour
from niwaki.evaluate.fidelity import fidelity
from niwaki.evaluate.generation import greedy
from niwaki.evaluate.harness import find_tasks, harness_scores
from niwaki.evaluate.judged import Judged
from niwaki.evaluate.latency import (
    PairedTiming,
    check_length,
    model_latency,
    paired,
    random_inputs,
    speedup,
    time_models,
)
from niwaki.evaluate.latency_table import LatencyTable, latency_table
from niwaki.evaluate.machine import cpu_name
from niwaki.evaluate.multiple_choice import (
    Mean,
    accuracies,
    encode_pair,
    encode_questions,
    log_likelihoods,
    multiple_choice,
)
from niwaki.evaluate.perplexity import LANGUAGE_METRICS, perplexity
from niwaki.evaluate.quality import METRICS, check_metric, judge, measures_of, quality
from niwaki.evaluate.rows import predictions
from niwaki.evaluate.size import size_bytes

__all__ = [
    "LANGUAGE_METRICS",
    "METRICS",
    "Judged",
    "LatencyTable",
    "Mean",
    "PairedTiming",
    "accuracies",
    "behaviour",
    "check_length",
    "check_metric",
    "check_questions",
    "cpu_name",
    "encode_pair",
    "encode_questions",
    "fidelity",
    "find_tasks",
    "greedy",
    "harness_scores",
    "judge",
    "latency_table",
    "log_likelihoods",
    "measures_of",
    "model_latency",
    "multiple_choice",
    "paired",
    "perplexity",
    "predictions",
    "quality",
    "random_inputs",
    "size_bytes",
    "speedup",
    "time_models",
]
