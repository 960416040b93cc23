"""A pruned model for those who do not have Niwaki: ONNX, GGUF, a merged checkpoint, one that brings its own code.

Every export has the signature `(model, path, tokenizer, overwrite)`. `model` is a plain model or a `PeftModel`, whose
adapters are merged in a copy; `path` is the folder to write, new or empty, or with `overwrite` one that holds only what
Niwaki wrote (for ONNX and GGUF, which take `quantize` too, also the name of a file that ends in `.onnx` or `.gguf`).
What is written takes its name at the end, whole, or not at all.

An engine that is not PyTorch has one function, `(model, tokenizer, quantize)` -> `Placed`, a model that runs there:
whatever measures a model measures it there.
"""

from niwaki.export.gguf import export_gguf
from niwaki.export.gguf.engine import in_llama_cpp
from niwaki.export.merged import export_merged
from niwaki.export.onnx import export_onnx
from niwaki.export.onnx.engine import in_onnxruntime
from niwaki.export.remote_code import export_remote_code

EXPORTS = {"onnx": export_onnx, "gguf": export_gguf, "merged": export_merged, "remote-code": export_remote_code}
IN_ENGINE = {"onnxruntime": in_onnxruntime, "llama.cpp": in_llama_cpp}

__all__ = [
    "EXPORTS",
    "IN_ENGINE",
    "export_gguf",
    "export_merged",
    "export_onnx",
    "export_remote_code",
    "in_llama_cpp",
    "in_onnxruntime",
]
