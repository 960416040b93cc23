"""Slices equal the whole: logits that are made a part at a time, layers that are run again on the way back."""

from __future__ import annotations

import copy

import pytest
import torch

from niwaki.anatomy import Said, evaluation_mode, linears_of, predictions_of, runs_of, said
from niwaki.checkpoint import mapped_copy
from niwaki.data import token_mask
from niwaki.evaluate import fidelity, perplexity
from niwaki.observe import Need, observe, watch
from niwaki.scoring.sensitivity import divergence_of
from niwaki.train.recover import distillation_loss
from tiny import ROWS, batches, decoders, tiny, with_lora

EVERYTHING = Need(task_gradients=True, output_gradients=True, gradient_moments=True, token_sizes=True)
SLICED = [family for family in ROWS if family in decoders()]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of three tokens."""
    monkeypatch.setattr(said, "AT_ONCE", 0)
    monkeypatch.setattr(said, "FEWEST", 3)


@pytest.mark.parametrize("family", SLICED)
def test_parts_are_the_whole_and_so_are_their_gradients(family, small_parts):
    model, (batch,) = tiny(family), batches(1, family=family)
    keep = token_mask(batch).bool()
    chosen = torch.randn(int(keep.sum()), model.config.vocab_size)
    embeddings, found = model.get_input_embeddings(), []
    for whole in (True, False):
        taken: list[torch.Tensor] = []
        hook = embeddings.register_forward_hook(lambda _m, _a, out, taken=taken: taken.append(out))
        hook_too = embeddings.register_forward_hook(lambda _m, _a, out: out.retain_grad())
        with evaluation_mode(model):
            if whole:
                values = predictions_of(model, model(**batch), keep).values
                (values * chosen).sum().backward()
            else:
                one = Said(model, batch)
                parts = [part() for part in one.parts(keep)]
                assert max(len(part.values) for part in parts) == 3
                values = torch.cat([part.values for part in parts])
                one.backward(keep, lambda part, place: (part.values * chosen[place]).sum())
        hook.remove()
        hook_too.remove()
        found.append((values.detach(), taken[0].grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_is_observed_and_measured_in_parts_is_that_of_the_whole(monkeypatch):
    model, other, data = with_lora(tiny("llama")), tiny("llama", seed=1), batches(2, family="llama")

    def everything():
        seen = observe(model, data, EVERYTHING, seed=3)
        sums = [torch.as_tensor(getattr(x, name)) for x in seen.linears.values() for name in vars(x)]
        sums += [torch.as_tensor(site.fisher) for site in seen.sites.values()]
        sums += [sizes[name] for sizes in seen.token_sizes for name in sizes]
        with divergence_of(model, data, seed=0) as without:
            sums.append(torch.tensor(without([])))
        student = copy.deepcopy(other).eval()
        loss = distillation_loss(student, model, data[0])
        loss.backward()
        figures = [perplexity(model, data)["nats_per_token"], *fidelity(model, other, data).values(), loss.item()]
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        return [*sums, *gradients, torch.tensor(figures)]

    whole = everything()
    monkeypatch.setattr(said, "AT_ONCE", 0)
    monkeypatch.setattr(said, "FEWEST", 3)
    for ours, theirs in zip(everything(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mobilellm"])
def test_layers_that_are_run_again_on_the_way_back_change_no_bit(family, monkeypatch):
    model, data = tiny(family), batches(2, family=family)
    found, runs = [], []
    hook = linears_of(model)[0].module.register_forward_hook(lambda *_: runs.append(1))
    for most in (2**40, 0):
        monkeypatch.setattr(watch, "MOST_LEFT", most)
        found.append(observe(model, data, EVERYTHING))
    hook.remove()
    # Once, or once and again for each of two ways back.
    assert len(runs) == (1 + 3) * len(data) * runs_of(model)
    first, second = found
    assert first.token_sizes[0].keys() == second.token_sizes[0].keys()
    for name, sums in first.linears.items():
        for key, value in vars(sums).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(second.linears[name], key)))


def test_a_mapped_copy_is_a_copy_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for model in (tiny("gpt2").bfloat16(), with_lora(tiny())):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        other = mapped_copy(model)
        assert type(other) is type(model)
        assert not list(tmp_path.iterdir())
        for name, value in other.state_dict().items():
            assert torch.equal(value, before[name])
        for parameter in other.parameters():
            parameter.data.fill_(1.0)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
