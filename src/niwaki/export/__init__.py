"""A pruned model for those who do not have Niwaki: ONNX, a merged checkpoint, a checkpoint that brings its own code.

Every export has the signature `(model, path, tokenizer, overwrite)`. `model` is a plain model or a `PeftModel`, whose
adapters are merged in a copy; `path` is the folder to write, new or empty, or with `overwrite` one that holds only what
Niwaki wrote (for ONNX, which takes `quantize` too, also the name of a file that ends in `.onnx`). What is written
takes its name at the end, whole, or not at all.
"""

from niwaki.export.merged import export_merged
from niwaki.export.onnx import export_onnx
from niwaki.export.remote_code import export_remote_code

EXPORTS = {"onnx": export_onnx, "merged": export_merged, "remote-code": export_remote_code}

__all__ = ["EXPORTS", "export_merged", "export_onnx", "export_remote_code"]
