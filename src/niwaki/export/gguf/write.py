"""A model as a GGUF file: numbers, vocabulary, tensors, each rounded as was asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import body_of
from niwaki.errors import RequestError
from niwaki.export.gguf.architecture import Architecture, add_numbers, frequency_factors
from niwaki.export.gguf.vocabulary import add_vocabulary

MARK = "niwaki.written"
"""Key of a file that Niwaki wrote."""


def write_gguf(
    model: PreTrainedModel, architecture: Architecture, file: Path, tokenizer: Any, quantize: str = "none"
) -> None:
    """Write `model`, plain, in float32 and on the CPU.

    Matrices are rounded as `quantize` says, vectors stay as they are. In 4 bits the embeddings, and the output layer
    with them, have 8: a token's row is all that is known of it.

    Raises:
        RequestError: rows that do not divide into the blocks of the rounding; a tokenizer that llama.cpp has not.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    writer = GGUFWriter(file, architecture.name)
    writer.add_string(MARK, "1")
    writer.add_file_type(LlamaFileType["ALL_F32" if quantize == "none" else f"MOSTLY_{quantize.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_numbers(writer, model, architecture)
    add_vocabulary(writer, tokenizer, cast(Any, model.config).vocab_size, _endings(model))
    for name, tensor in _tensors(model, architecture):
        array, rounding = _rounded(name, tensor, quantize)
        writer.add_tensor(name, array, raw_dtype=rounding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_rows(model: PreTrainedModel, architecture: Architecture, quantize: str) -> None:
    """Refuse, before any work, a model whose rows a rounding cannot take.

    Raises:
        RequestError: with the matrix, its length, and what would fit.
    """
    for name, tensor in _tensors(model, architecture):
        _rounding(name, tensor, quantize)


def _endings(model: PreTrainedModel) -> list[int]:
    """Ids at which a text ends, by the model's own configuration."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:  # 0 is an id
        found = getattr(model.config, "eos_token_id", None)
    return found if isinstance(found, list) else [] if found is None else [found]


def _tensors(model: PreTrainedModel, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    body = cast(Any, body_of(model))
    yield "token_embd.weight", body.embed_tokens.weight
    factors = frequency_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors
    for number, block in enumerate(architecture.blocks):
        for name, tensor in block.tensors.items():
            yield f"blk.{number}.{name}", tensor
    yield "output_norm.weight", body.norm.weight
    output = cast(Any, model.get_output_embeddings())
    if output.weight is not body.embed_tokens.weight:
        yield "output.weight", output.weight


def _rounding(name: str, tensor: Tensor, quantize: str) -> Any:
    """The `gguf.GGMLQuantizationType` of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.dim() < 2 or quantize == "none":
        return GGMLQuantizationType.F32
    whole = name.startswith(("token_embd", "output.")) and quantize.startswith("q4")
    rounding = GGMLQuantizationType["Q8_0" if whole else quantize.upper()]
    block = GGML_QUANT_SIZES[rounding][0]
    if tensor.shape[1] % block:
        rule = f"quantize {quantize} needs rows that {block} divides"
        way = f"prune with --round-to {block}" if "ffn" in name else "take f16, or none"
        raise RequestError(f"{rule}, got {tensor.shape[1]} in {name}; {way}")
    return rounding


def _rounded(name: str, tensor: Tensor, quantize: str) -> tuple[Any, Any]:
    """A tensor as the file holds it, and how it is rounded."""
    from gguf.quants import quantize as rounded

    rounding = _rounding(name, tensor, quantize)
    return rounded(tensor.detach().float().contiguous().numpy(), rounding), rounding
