"""Multi-token prediction: its loss, its lean backward pass, and what is in memory meanwhile."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.mtp_models import VOCABULARY, gpt2, llama, samples, tokens
from trainenv.models import add_heads
from trainenv.objectives import MTP, NextToken
from trainenv.objectives.weightings import Critic, RandomSelection, Rho1
from trainenv.types import UserError

MODELS = {
    "GPT-2": lambda: gpt2(),
    "GPT-2, linear heads": lambda: gpt2(kind="linear"),
    "Llama": lambda: llama(),
    "Llama, tied": lambda: llama(tied=True),
    "Llama, linear heads": lambda: llama(kind="linear"),
}


def gradients(model: nn.Module, objective: MTP, micros: list[Any]) -> dict[str, Tensor]:
    """Return the gradients of the mean over micro-batches."""
    model.zero_grad(set_to_none=True)
    for micro in micros:
        (objective(model, micro) / len(micros)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def head_logits(model: Any, inputs: Tensor) -> list[Tensor]:
    """Return the logits [B, T, V] of each head, by the parts of a GPT-2."""
    body = model.transformer
    hidden = body.wte(inputs) + body.wpe.weight[: inputs.shape[1]]
    for block in body.h[:-1]:
        hidden = block(hidden)
    heads = [body.h[-1], *model.future_heads.further.values()]
    return [model.lm_head(body.ln_f(head(hidden))) for head in heads]


@pytest.mark.parametrize("labelled", [False, True])
def test_the_loss_is_that_of_a_triple_loop(labelled: bool) -> None:
    model = gpt2().double()
    data = samples()
    if not labelled:
        data["labels"] = data["tokens"]
    lambdas = (1.0, 0.5, 2.0, 0.25)
    logits = head_logits(model, data["tokens"][:, :-1])
    rows, length = data["tokens"].shape
    total = 0.0
    for head in range(4):
        found = []
        for row in range(rows):
            for place in range(length - 1 - head):
                label = int(data["labels"][row, place + 1 + head])
                if label != -100:
                    found.append(-logits[head][row, place].log_softmax(-1)[label].item())
        total += lambdas[head] * sum(found) / len(found)
    loss = MTP(head_weights=lambdas)(model, data if labelled else data["tokens"])
    assert loss.item() == pytest.approx(total / sum(lambdas), abs=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_lean_gradients_are_those_of_the_joint_backward_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, and accumulation over micro-batches with different numbers of labels, included."""

    def norm(module: Any, hidden: Tensor) -> Tensor:  # Llama's own rounds to float32
        scale = (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        return module.weight * hidden * scale

    kind = "transformers.models.llama.modeling_llama.LlamaRMSNorm.forward"
    monkeypatch.setattr(kind, norm)
    model = MODELS[name]().double()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    micros = [samples(seed=1), samples(rows=2, seed=2)]
    weighting = Rho1(temperature=0.5)
    lean, joint = (
        gradients(model, MTP(weighting=weighting, reference=reference, lean=lean), micros)
        for lean in (True, False)
    )
    assert lean.keys() == joint.keys() == {name for name, _ in model.named_parameters()}
    assert max(float((lean[name] - joint[name]).abs().max()) for name in joint) <= 1e-12
    assert min(float(joint[name].abs().max()) for name in joint) > 0


@pytest.mark.parametrize("value_to_trunk", [True, False])
def test_lean_gradients_of_the_critic(value_to_trunk: bool) -> None:
    model = gpt2(value=True).double()
    critic = Critic(value_steps=0, whiten=True, lam=0.5, value_to_trunk=value_to_trunk)
    lean, joint = (
        gradients(model, MTP(weighting=critic, lean=lean), [samples()]) for lean in (True, False)
    )
    assert max(float((lean[name] - joint[name]).abs().max()) for name in joint) <= 1e-12
    assert float(joint["future_heads.value.weight"].abs().max()) > 0


@pytest.mark.parametrize("kind", ["block", "linear"])
def test_a_frozen_trunk_needs_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads get the gradients that they get with it; head 0 has nothing to differentiate."""
    model = llama(kind=kind).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole = gradients(model, MTP(), [samples()])
    heads = {id(parameter) for parameter in model.future_heads.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in heads)
    asked: list[int] = []
    grad = torch.autograd.grad

    def noting(loss: Tensor, wanted: list[Tensor], **options: Any) -> Any:
        asked.append(len(wanted))
        return grad(loss, wanted, **options)

    monkeypatch.setattr(torch.autograd, "grad", noting)
    alone = gradients(model, MTP(), [samples()])
    assert asked == [len(heads)] * 3
    assert alone.keys() == {name for name in whole if name.startswith("future_heads.")}
    assert max(float((alone[name] - whole[name]).abs().max()) for name in alone) <= 1e-12


def test_one_head_with_weight_1_is_next_token_prediction_to_the_bit() -> None:
    model = gpt2(heads=1)
    data = tokens()
    found = []
    for objective in (NextToken(), MTP(), MTP(lean=False)):
        model.zero_grad(set_to_none=True)
        loss = objective(model, data)
        (loss / 3).backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    for loss, grads in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert all(torch.equal(one, two) for one, two in zip(grads, found[0][1], strict=True))


def test_under_bf16_lean_and_joint_agree_but_for_rounding() -> None:
    model = gpt2()
    with torch.autocast("cpu", torch.bfloat16):
        lean, joint = (gradients(model, MTP(lean=lean), [tokens()]) for lean in (True, False))
    for name, gradient in joint.items():
        torch.testing.assert_close(lean[name], gradient, rtol=0.05, atol=2e-3)


def alive_at_once(model: nn.Module, objective: MTP) -> int:
    """Return the largest number of logits [rows, V] that are kept for a backward pass at once."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    most = 0

    def pack(tensor: Tensor) -> Any:
        nonlocal most
        if tensor.dim() == 2 and tensor.shape[1] == VOCABULARY:  # no weight: it is [V, W]
            kept = Kept(tensor)
            alive.add(kept)
            most = max(most, len(alive))
            return kept
        return tensor

    def unpack(kept: Any) -> Tensor:
        return kept.tensor if isinstance(kept, Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = objective(model, tokens())
    loss.backward()
    del loss
    gc.collect()
    assert not alive
    return most


def test_the_logits_of_one_head_are_in_memory_at_a_time() -> None:
    model = gpt2()
    alone = alive_at_once(gpt2(heads=1), MTP())
    assert alone >= 1
    assert alive_at_once(model, MTP()) == alone
    assert alive_at_once(model, MTP(lean=False)) == 4 * alone


def most_kept(model: nn.Module, objective: Any) -> int:
    """Return the most bytes that are kept for a backward pass at once, without the weights."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    most = 0

    def pack(tensor: Tensor) -> Kept:
        nonlocal most
        kept = Kept(tensor)
        alive.add(kept)
        storages = {one.tensor.untyped_storage().data_ptr(): one.tensor for one in alive}
        sizes = [
            one.untyped_storage().nbytes() for at, one in storages.items() if at not in weights
        ]
        most = max(most, sum(sizes))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        objective(model, tokens(rows=3, length=13)).backward()
    return most


@pytest.mark.parametrize("make", [gpt2, llama])
def test_further_heads_keep_no_more_activations_than_the_next_token(make: Any) -> None:
    """The last block is part of head 0, so that one block behind the trunk is kept at a time."""
    alone = most_kept(make(heads=1), NextToken())
    assert most_kept(make(), MTP()) <= 1.02 * alone
    assert most_kept(make(), MTP(lean=False)) > 1.5 * alone


def test_the_last_block_is_as_it_was_after_an_error() -> None:
    model: Any = gpt2()
    last = model.future_heads.last_block(model)
    with pytest.raises(IndexError):
        MTP()(model, torch.full((1, 5), VOCABULARY))
    assert "forward" not in vars(last)


def test_the_gradients_are_used_up_by_one_backward_pass() -> None:
    loss = MTP()(gpt2(), tokens())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_without_gradients_the_loss_is_that_of_the_next_token() -> None:
    model = gpt2()
    data = samples()
    objective = MTP(weighting=RandomSelection(keep_head_0=False))
    with torch.no_grad():
        assert torch.equal(objective(model, data["tokens"]), NextToken()(model, data["tokens"]))
        logits = model(data["tokens"][:, :-1]).logits
        expected = F.cross_entropy(logits.flatten(0, 1), data["labels"][:, 1:].flatten())
        assert torch.equal(objective(model, data), expected)
    assert objective.calls == 0


def test_a_padded_row_does_not_change_the_others() -> None:
    model = gpt2().double()
    data = samples()
    longer = {name: torch.cat([part, part[:1]]) for name, part in data.items()}
    longer["labels"][-1] = -100
    assert MTP()(model, longer).item() == pytest.approx(MTP()(model, data).item(), abs=1e-12)
    nothing = data | {"labels": torch.full_like(data["labels"], -100)}
    assert MTP()(model, nothing).isnan()


def test_a_head_beyond_the_end_of_the_sequence_is_left_out() -> None:
    model = gpt2().double()
    short = tokens(length=3)
    expected = [
        F.cross_entropy(one[:, : 2 - head].flatten(0, 1), short[:, 1 + head :].flatten())
        for head, one in enumerate(head_logits(model, short[:, :-1])[:2])
    ]
    loss = MTP()(model, short)
    assert loss.item() == pytest.approx(sum(expected).item() / 2, abs=1e-12)
    loss.backward()
    assert model.future_heads.further["3"].ln_1.weight.grad is None  # type: ignore[union-attr]


def test_mistakes_are_named() -> None:
    model = gpt2()
    bare = llama()
    del bare.future_heads
    with pytest.raises(UserError, match=r"needs a model with future heads.*add_heads"):
        MTP()(bare, tokens())
    with pytest.raises(UserError, match="has future heads already"):
        add_heads(model)
    with pytest.raises(UserError, match="expected a causal language model"):
        add_heads(nn.Linear(2, 2))
    with pytest.raises(UserError, match="at least 1, found 0"):
        add_heads(bare, heads=0)
    with pytest.raises(UserError, match="must be block or linear"):
        add_heads(bare, kind="cubic")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="for each of 4 heads, found 2"):
        MTP(head_weights=(1, 1))(model, tokens())
    with pytest.raises(UserError, match="one above 0"):
        MTP(head_weights=(0, 0))
    with pytest.raises(UserError, match="Rho1 needs a reference model"):
        MTP(weighting=Rho1())
    with pytest.raises(UserError, match="model with a value head"):
        MTP(weighting=Critic())(model, samples())
    with pytest.raises(UserError, match="needs micro-batches with `reward`"):
        MTP(weighting=Critic())(gpt2(value=True), tokens())
    with pytest.raises(UserError, match="labels must have the shape"):
        MTP()(model, {"tokens": tokens(), "labels": tokens()[:, 1:]})
    with pytest.raises(UserError, match="int64"):
        MTP()(model, tokens().float())


def test_a_model_that_changes_its_logits_is_refused() -> None:
    class Capped(type(gpt2())):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, **keywords: Any) -> Any:
            output = super().forward(input_ids, **keywords)
            output.logits = 30 * torch.tanh(output.logits / 3)
            return output

    model = gpt2()
    del model.future_heads
    model.__class__ = Capped
    with pytest.raises(UserError, match="changes them in between"):
        add_heads(model)
