"""Chunked log-probs: the plain log-softmax, in value and gradient, for every chunk size."""

import pytest
import torch

from rollout.logprobs import chunked_logp

ROWS, WIDTH, VOCABULARY = 7, 5, 11


def inputs(rows=ROWS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (rows,), generator=generator)


def plain(hidden, weight, target, temperature):
    logp = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.invariance
@pytest.mark.parametrize("chunk", range(1, ROWS + 2))
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_values_and_gradients_are_those_of_log_softmax(chunk, temperature):
    hidden, weight, target = inputs()
    upstream = torch.randn(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logp, entropy = chunked_logp(hidden, weight, target, temperature=temperature, chunk_tokens=chunk)
    found = torch.autograd.grad((logp * upstream).sum(), (hidden, weight))
    expected_logp, expected_entropy = plain(hidden, weight, target, temperature)
    expected = torch.autograd.grad((expected_logp * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(logp, expected_logp, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.invariance
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradcheck(chunk):
    hidden, weight, target = inputs(rows=4)
    run = lambda h, w: chunked_logp(h, w, target, temperature=0.8, chunk_tokens=chunk)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_still_do():
    hidden, weight, target = inputs()
    weight.requires_grad_(False)
    chunked_logp(hidden, weight, target, temperature=1.0, chunk_tokens=3)[0].sum().backward()
    assert weight.grad is None
    expected = torch.autograd.grad(plain(hidden, weight, target, 1.0)[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, atol=1e-12, rtol=0)


def test_the_entropy_carries_no_gradient():
    hidden, weight, target = inputs()
    assert not chunked_logp(hidden, weight, target, temperature=1.0, chunk_tokens=3)[1].requires_grad


def test_no_tokens_give_empty_results_and_a_zero_gradient():
    hidden, weight, target = inputs(rows=0)
    logp, entropy = chunked_logp(hidden, weight, target, temperature=1.0, chunk_tokens=3)
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert weight.grad.abs().max() == 0


def test_half_precision_hidden_states_with_a_float32_head_give_float32_log_probs():
    hidden, weight, target = inputs(dtype=torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    logp, entropy = chunked_logp(half, weight, target, temperature=1.0, chunk_tokens=3)
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp, plain(hidden, weight, target, 1.0)[0], atol=0.05, rtol=0)
    logp.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    expected = torch.autograd.grad(plain(hidden, weight, target, 1.0)[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, atol=0.05, rtol=0.05)


def test_huge_logits_stay_finite():
    hidden, weight, target = inputs(dtype=torch.float32)
    logp, entropy = chunked_logp(hidden * 1e4, weight, target, temperature=1.0, chunk_tokens=3)
    logp.sum().backward()
    assert torch.isfinite(logp).all()
    assert torch.isfinite(entropy).all()
    assert torch.isfinite(hidden.grad).all()


def test_no_tensor_of_all_tokens_times_the_vocabulary_is_kept_for_the_backward_pass():
    hidden, weight, target = inputs(rows=64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        chunked_logp(hidden, weight, target, temperature=1.0, chunk_tokens=4)
    assert sizes
    assert max(sizes) < 64 * VOCABULARY
