"""What a model is worth as it stands: quality, latency, size."""

from niwaki.evaluate.latency import PairedTiming, model_latency, paired, random_inputs, speedup
from niwaki.evaluate.latency_table import LatencyTable, latency_table
from niwaki.evaluate.machine import cpu_name
from niwaki.evaluate.perplexity import LANGUAGE_METRICS, perplexity
from niwaki.evaluate.quality import METRICS, check_metric, predictions, quality
from niwaki.evaluate.size import size_bytes

__all__ = [
    "LANGUAGE_METRICS",
    "METRICS",
    "LatencyTable",
    "PairedTiming",
    "check_metric",
    "cpu_name",
    "latency_table",
    "model_latency",
    "paired",
    "perplexity",
    "predictions",
    "quality",
    "random_inputs",
    "size_bytes",
    "speedup",
]
