"""Save and load, atomically, with uneven layers.

A pruned model is an ordinary Transformers folder. Where its layers are no longer what the plain config says, its config
holds a table of shapes under `quantization_config` with the method name `niwaki`, from the cut on, so that every way of
saving writes it (`niwaki.surgery.shapes`): the quantizer hook of Transformers is the one place where a model can be
changed on the meta device before its weights arrive, so `from_pretrained` works as soon as `niwaki` is imported. The
same entry says that masks lie beside the weights. After loading, nothing marks the model as quantised but that table,
so it trains and is saved again like any other. A cut that leaves all layers alike is a plain config, unless heads are
gone and the config takes their width from their number. A remote-code export (see `niwaki.export`) keeps its table
under the key `niwaki`; `load` reads that too, and never runs the code.
"""

import niwaki.checkpoint.hook  # noqa: F401 - registers what `from_pretrained` needs
from niwaki.checkpoint.files import INDEX, AsRead, packed_bytes, weight_files
from niwaki.checkpoint.library import quiet
from niwaki.checkpoint.mapped import mapped_copy
from niwaki.checkpoint.masks import write_masks
from niwaki.checkpoint.plain import NewLabels, new_parameters
from niwaki.checkpoint.read import load, task_of_checkpoint
from niwaki.checkpoint.sentence import SentenceHead, plain_pooling
from niwaki.checkpoint.tokenizer import agree_on_padding_, as_loaded, is_written_as_, load_tokenizer, write_tokenizer
from niwaki.checkpoint.write import SHARD, check_adapter_left, merged, save, write_adapter, write_model
from niwaki.surgery.shapes import METHOD, forget_, shapes_of

__all__ = [
    "INDEX",
    "METHOD",
    "SHARD",
    "AsRead",
    "NewLabels",
    "SentenceHead",
    "agree_on_padding_",
    "as_loaded",
    "check_adapter_left",
    "forget_",
    "is_written_as_",
    "load",
    "load_tokenizer",
    "mapped_copy",
    "merged",
    "new_parameters",
    "packed_bytes",
    "plain_pooling",
    "quiet",
    "save",
    "shapes_of",
    "task_of_checkpoint",
    "weight_files",
    "write_adapter",
    "write_masks",
    "write_model",
    "write_tokenizer",
]
