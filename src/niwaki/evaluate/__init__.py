"""What a model is worth as it stands: quality, latency, size."""

from niwaki.evaluate.latency import PairedTiming, model_latency, paired
from niwaki.evaluate.quality import METRICS, evaluation_mode, predictions, quality
from niwaki.evaluate.size import file_bytes, size_bytes

__all__ = [
    "METRICS",
    "PairedTiming",
    "evaluation_mode",
    "file_bytes",
    "model_latency",
    "paired",
    "predictions",
    "quality",
    "size_bytes",
]
