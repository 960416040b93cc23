"""Recovery: a pruned model learns from the dense one it came from, through LoRA or by all weights that are left.

The loss is the divergence of the predictions (Hinton et al., 2015; what it is of a model that gives no classes is said
in `niwaki.anatomy.predictions`) plus the squared error of every layer's hidden states, over real tokens, relative to
their size: what pruning leaves has the same width as the dense model, so the two compare as they stand (CoFi, Xia et
al., ACL 2022, without its layer map). No labels are needed. The temperature is 1, the best for language models
(Muralidharan et al., NeurIPS 2024, Minitron): at 2 less of the excess of TinyStories and SST-2 was gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from niwaki.adapters import merge_, weights_to_train_
from niwaki.anatomy import Part, Said, evaluation_mode, one_a_row, supported_task
from niwaki.config import LayerAdaptive, Structured
from niwaki.config.finetune import LORA_RANK
from niwaki.data import token_mask, without_labels
from niwaki.numerics.half import run_again
from niwaki.observe import Batch, Passes
from niwaki.train.data import TrainingData, hold_out
from niwaki.train.loop import steps_of, train_
from niwaki.train.step import Over, Whole, alone, rows_in
from niwaki.train.undo import adapters_in_training_, weights_in_training_


def recover_(
    model: nn.Module,
    dense: nn.Module,
    data: TrainingData,
    config: Structured | LayerAdaptive,
    calibration: Sequence[Batch],
    *,
    step: int = 1,
    progress: bool = False,
) -> Passes:
    """Train `model` in place towards `dense` over `data` for part `step` of the `config.steps` of the epochs asked.

    Some batches are held out, where there are enough, of rows that are not among the `calibration` it was fitted to:
    what is trained ends as it was when its loss there was lowest.
    The adapters of a `PeftModel` are trained as they are; a plain model gets LoRA that is merged at the end. With
    `recover_full` it is all weights that the blocks have left that are trained, adapters with them. Which parameters
    require gradients is afterwards as it was. A recovery that fails or is interrupted leaves `model` as it came in:
    pruned and refitted, without what was half trained.

    Returns what it cost in passes over the calibration data.

    Raises:
        WorkError: a loss that is not finite.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training, held_out = hold_out(data, config.seed, calibration)
    epochs, part = config.recover_epochs, (step, config.steps)
    if not steps_of(training, epochs, config, part):
        return Passes()

    def loss_of(student: nn.Module, batch: Batch, whole: Whole) -> Tensor:
        return distillation_loss(student, dense, batch, config.recover_loss, whole)

    if config.recover_full:
        prepared = weights_in_training_(model, weights_to_train_)
    else:
        prepared = adapters_in_training_(model, LORA_RANK, seed=config.seed)
    # Dropout would hide from what is left of the model what it has to make up for.
    with prepared as student, evaluation_mode(student, dense):
        done = train_(
            student,
            training,
            loss_of,
            config,
            over=predictions_in(model),
            epochs=epochs,
            learning_rate=config.recover_rate,
            seed=config.seed,
            held_out=held_out,
            part=part,
            progress=progress,
        )
        if isinstance(student, PeftModel) and student is not model:
            merge_(student)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required[name])
    # The dense model runs forward beside the one that is trained.
    return Passes(2 * (done.batches + done.looked) / len(calibration), done.batches / len(calibration))


def predictions_in(model: nn.Module) -> Over:
    """How many predictions of `model` the divergence of a batch is the mean of: as many as rows, or as real tokens."""
    by_row = one_a_row(model) or supported_task(model).labels == "span"
    return rows_in if by_row else lambda batch: int(token_mask(batch).sum())


def distillation_loss(
    student: nn.Module, teacher: nn.Module, batch: Batch, which: str = "both", whole: Whole = alone
) -> Tensor:
    """Divergence of the predictions plus relative error of the hidden states of one batch, or one of them; a scalar.

    `which` as in `RECOVER_LOSSES`. Of a process's share of a batch, told by `whole`, errors are relative to the size of
    the states in all of it. 0 for padding alone.
    """
    inputs, keep = without_labels(batch), token_mask(batch).bool()
    states = which != "predictions"
    with torch.no_grad():
        wanted = Said(teacher, inputs, output_hidden_states=states)
    found = Said(student, inputs, output_hidden_states=states)
    loss = torch.zeros((), device=keep.device)
    if which != "hidden-states":
        # What the divergence of a part is made of is made again on the way back: of all parts it is too much to keep.
        pairs = zip(found.parts(keep), wanted.parts(keep), strict=True)
        models = (student, teacher)
        apart = [run_again(_apart, *pair, models=models, preserve_rng_state=False) for pair in pairs]
        loss = torch.cat(apart).sum() / max(1, sum(map(len, apart)))
    if states:
        losses = torch.tensor(predictions_in(student)(batch), dtype=torch.double)
        part = float(whole(losses) / losses.clamp_min(1))
        loss = loss + part * _error(found.outputs.hidden_states, wanted.outputs.hidden_states, keep, whole)
    return loss


def _apart(own: Part, dense: Part) -> Tensor:
    """How far each prediction of a part is from the dense model's."""
    with torch.no_grad():
        goal = dense().float()
    return own().float().divergence_from(goal)


def _error(found: Sequence[Tensor], wanted: Sequence[Tensor], keep: Tensor, whole: Whole) -> Tensor:
    """Mean over the layers of the squared error at real tokens relative to the size of what is wanted in the whole."""
    sizes = whole(torch.stack([goal[keep].float().square().sum() for goal in wanted[1:]]))
    pairs = zip(found[1:], wanted[1:], strict=True)
    errors = torch.stack([(states[keep] - goal[keep]).float().square().sum() for states, goal in pairs])
    return (errors / sizes.clamp_min(torch.finfo(torch.float32).tiny)).mean()
