"""What PEFT alone writes of an adapter that was trained under masks is not taken for one of the dense base."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import niwaki
from niwaki import RequestError
from niwaki.adapters import masks_of
from tiny import batches, logits, tiny, with_lora

ROWS = [{key: value[i] for key, value in batch.items()} for batch in batches(count=4, rows=4) for i in range(4)]


def in_a_trainer(model, out):
    """Trained under moving masks; what the Trainer then saves."""
    arguments = TrainingArguments(str(out), use_cpu=True, disable_tqdm=True, report_to="none", num_train_epochs=2,
                                  per_device_train_batch_size=4, dataloader_pin_memory=False)  # fmt: skip
    callback = niwaki.DynamicSparsity(sparsity=0.6, interval=2, quiet=True)
    trainer = Trainer(model, arguments, train_dataset=ROWS, callbacks=[callback])
    trainer.train()
    trainer.save_model(str(out / "saved"))


def in_a_loop(model, out):
    """The same in a loop of one's own."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    controller = niwaki.DynamicSparsity(sparsity=0.6, interval=2).attach(model, optimizer, 8)
    for batch in batches(8):
        model(**batch).loss.backward()
        optimizer.step()
        controller.step()
        optimizer.zero_grad()
    controller.finish()
    model.save_pretrained(out / "saved")


@pytest.mark.parametrize("trained", [in_a_trainer, in_a_loop])
def test_it_names_no_base_and_niwaki_saves_it_whole(trained, tmp_path):
    tiny().save_pretrained(tmp_path / "dense")
    model = with_lora(AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense"))
    trained(model, tmp_path)
    with pytest.raises(RequestError, match=r"base_model must be given: .*save it with niwaki\.save"):
        niwaki.load(tmp_path / "saved")
    niwaki.save(model, tmp_path / "whole")
    again, batch = niwaki.load(tmp_path / "whole"), batches()[0]
    torch.testing.assert_close(logits(again.eval(), batch), logits(model.eval(), batch))
    masks = masks_of(model)
    assert masks
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(again).items())
