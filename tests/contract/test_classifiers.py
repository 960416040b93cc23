"""Every family that Transformers has a classifier of, decoders among them: its head, its padding, its export."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import niwaki
from niwaki import export
from niwaki.anatomy import is_regression, longest_input, task_of
from niwaki.checkpoint.task import output_layer
from niwaki.export import export_onnx
from tiny import VOCABULARY, configs, shorten_

FAMILIES = [name for name in configs() if name not in ("mobilellm", "llama4_text")]
"""But for those of which there is no classifier."""


def classifier(family, padding=0, labels=3, layers=None):
    config = configs()[family]
    config.num_labels = labels
    if layers is not None:
        shorten_(config, layers)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.config.pad_token_id = padding
    return model


@pytest.mark.parametrize("padding", [0, VOCABULARY - 1, VOCABULARY, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_batches_that_check_an_export_fit_the_model(family, padding):
    model = classifier(family, padding)
    for batch in export.onnx.check.padded_batches(model, None):
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        assert 0 <= ids.min() <= ids.max() < VOCABULARY
        assert 5 <= ids.shape[1] <= longest_input(model) or ids.shape[1] in (5, 11)
        assert mask[0].all()
        assert mask.any(1).all()
        if padding is not None and padding < VOCABULARY:
            assert (ids[~mask] == padding).all()
            assert (ids[mask] != padding).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_answer_among_others(family):
    model = classifier(family)
    batch = export.onnx.check.padded_batches(model, None)[-1]
    with torch.no_grad():
        together = model(**{key: value for key, value in batch.items() if key != "token_type_ids"}).logits
        for row, ids in enumerate(batch["input_ids"]):
            alone = model(input_ids=ids[None, : int(batch["attention_mask"][row].sum())]).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_that_gives_the_logits_is_found(family):
    for labels in (1, 3, 32):  # 32 is the width of the model too
        name, linear = output_layer(classifier(family, labels=labels))
        assert linear.out_features == labels
        assert name in ("classifier", "classifier.out_proj", "score")
    assert is_regression(classifier(family, labels=1))
    assert task_of(classifier(family)).name == "text-classification"


def test_onnx_of_a_decoder_that_pads_with_its_last_token(tmp_path):
    pytest.importorskip("onnxscript")
    export_onnx(classifier("gpt2", VOCABULARY - 1, layers=1), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").is_file()


def test_onnx_of_a_decoder_without_padding_is_refused_before_any_work(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(niwaki.RequestError, match="pad_token_id of a decoder's config must be given"):
        export_onnx(classifier("gpt2", None), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
