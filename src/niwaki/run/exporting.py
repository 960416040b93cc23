"""A model as a file or folder for those who do not have Niwaki."""

from __future__ import annotations

from niwaki.anatomy import unwrap
from niwaki.checkpoint import agree_on_padding_, load, load_tokenizer, new_parameters
from niwaki.config.engine import check_quantization
from niwaki.errors import RequestError, check_choice
from niwaki.export import EXPORTS
from niwaki.export.gguf.check import trial_perplexities
from niwaki.export.onnx.quantize import saturates
from niwaki.progress import library_manners, say
from niwaki.run.inputs import check_out


def run_export(
    model: str,
    to: str,
    out: str,
    base_model: str | None = None,
    quantize: str = "none",
    optimize: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Write `model` to `out` in the form that `to` names, see `niwaki.export`.

    Raises:
        RequestError: the request is wrong. WorkError: what was written does not compute what the model does.
    """
    check_choice("to", to, EXPORTS)
    check_quantization(to, quantize)
    if optimize and to != "onnx":
        raise RequestError(f"optimize must be asked with to onnx, got to {to}")
    check_out(out, model, base_model)
    with library_manners(quiet):
        loaded = load(model, base_model, dtype="float32" if to in ("onnx", "gguf") else "auto")
        check_out(out, unwrap(loaded).name_or_path)  # the base of an adapter too
        if fresh := new_parameters(loaded):
            raise RequestError(f"model must have a trained task head, got {model!r} without {fresh[0]}")
        tokenizer = load_tokenizer(model, base_model)
        agree_on_padding_(loaded, tokenizer)
        options = ({} if quantize == "none" else {"quantize": quantize}) | ({"optimize": True} if optimize else {})
        EXPORTS[to](loaded, out, tokenizer, overwrite, **options)
        if to == "gguf":
            here, there = trial_perplexities(loaded, out, tokenizer)
            say(f"llama.cpp: perplexity of a trial text {there:.4g}, {here:.4g} in PyTorch", quiet)
    say_bits(quantize, quiet)


def say_bits(quantize: str, quiet: bool) -> None:
    """Say so where a weight in int8 has fewer bits."""
    if quantize == "int8" and saturates():
        say("int8: weights have 7 bits, as sums of 8 overflow on a processor without VNNI, such as this one", quiet)
