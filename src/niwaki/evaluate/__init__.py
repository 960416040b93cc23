"""What a model is worth as it stands: quality, latency, size."""

from niwaki.evaluate.latency import model_latency, paired
from niwaki.evaluate.quality import METRICS, predictions, quality
from niwaki.evaluate.size import size_bytes

__all__ = ["METRICS", "model_latency", "paired", "predictions", "quality", "size_bytes"]
