"""The graph as ONNX Runtime would make it when it loads it: constants folded, norms and activations fused."""

from __future__ import annotations

from pathlib import Path

from niwaki.export.onnx.silence import silent


def fuse(source: Path, target: Path) -> None:
    """Write `target`, the graph of `source` as ONNX Runtime rewrites it, but for what one processor alone has."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3  # it warns of what every such file is
    with silent():
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    kept = onnx.load(str(source), load_external_data=False).metadata_props
    graph = onnx.load(str(target))
    if not graph.metadata_props:
        graph.metadata_props.extend(kept)
        onnx.save(graph, str(target))
