"""No export takes a model for one of another task."""

from __future__ import annotations

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

import niwaki
from niwaki.export import EXPORTS
from tiny import configs


@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForMaskedLM])
@pytest.mark.parametrize("to", EXPORTS)
def test_a_model_of_another_task_is_refused(to, auto, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxscript")
    model = auto.from_config(configs()["bert"])
    with pytest.raises(niwaki.RequestError, match=rf"ForSequenceClassification\), got {type(model).__name__}, a "):
        EXPORTS[to](model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
