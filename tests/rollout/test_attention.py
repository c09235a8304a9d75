"""Packed attention: equal to attention over each sequence alone, and impossible to call in a form that leaks."""

import sys
import types
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rollout.attention import NAME, choose_varlen, flash_varlen, packed_forward, sdpa_varlen
from rollout.packing import pack
from tests.helpers import CPU, random_trajectories, tiny_model, trajectory
from verifiers.errors import MissingExtraError

LENGTHS = [7, 7, 7, 4, 1, 3, 3]


def qkv(heads=4, kv_heads=2, head_dim=8, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    q, k, v = (
        torch.randn(total, n, head_dim, generator=generator, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)
    )
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), cu_seqlens


def attention_by_hand(q, k, v, cu_seqlens, scale):
    """Softmax attention of every sequence and head on its own, written out."""
    out = torch.zeros_like(q)
    per_group = q.shape[1] // k.shape[1]
    borders = cu_seqlens.tolist()
    for a, b in pairwise(borders):
        for h in range(q.shape[1]):
            scores = q[a:b, h] @ k[a:b, h // per_group].T * scale
            future = torch.ones(b - a, b - a).triu(1).bool()
            out[a:b, h] = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v[a:b, h // per_group]
    return out


def reference_flash_attn_varlen_func(q, k, v, **kwargs):
    """What flash-attn documents for `flash_attn_varlen_func`, with its own checks, on SDPA."""
    cu_q, cu_k = kwargs.pop("cu_seqlens_q"), kwargs.pop("cu_seqlens_k")
    max_q, max_k = kwargs.pop("max_seqlen_q"), kwargs.pop("max_seqlen_k")
    scale, causal = kwargs.pop("softmax_scale"), kwargs.pop("causal")
    assert not kwargs, f"unknown arguments {kwargs}"
    assert q.dtype == k.dtype == v.dtype
    assert q.ndim == k.ndim == v.ndim == 3
    assert k.shape == v.shape
    assert q.shape[1] % k.shape[1] == 0
    assert q.shape[2] == k.shape[2]
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.ndim == 1
    assert cu_q[0] == 0
    assert cu_q[-1] == q.shape[0]
    assert cu_k[-1] == k.shape[0]
    assert isinstance(max_q, int)
    assert max_q == max_k == int((cu_q[1:] - cu_q[:-1]).max())
    assert isinstance(scale, float)
    assert all(t.stride(-1) == 1 for t in (q, k, v)), "flash-attn wants the last dimension contiguous"
    out = []
    for a, b in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
        heads = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        out.append(
            F.scaled_dot_product_attention(*heads, is_causal=causal, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(out)


@pytest.fixture
def fake_flash_attn(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.calls = []

    def record(q, k, v, **kwargs):
        module.calls.append(kwargs)
        return reference_flash_attn_varlen_func(q, k, v, **kwargs)

    module.flash_attn_varlen_func = record
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


# ---- the kernels -------------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_sdpa_varlen_equals_attention_over_each_sequence_alone(heads, kv_heads):
    q, k, v, cu_seqlens = qkv(heads, kv_heads)
    out = sdpa_varlen(q, k, v, cu_seqlens, max(LENGTHS), 0.3)
    torch.testing.assert_close(out, attention_by_hand(q, k, v, cu_seqlens, 0.3), atol=1e-12, rtol=0)


@pytest.mark.invariance
def test_sdpa_varlen_has_the_gradient_of_attention_over_each_sequence_alone():
    q, k, v, cu_seqlens = qkv()
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = [], []
    for run, grads in ((lambda *t: sdpa_varlen(*t, cu_seqlens, 7, 0.3), found),
                       (lambda *t: attention_by_hand(*t, cu_seqlens, 0.3), expected)):  # fmt: skip
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        (run(*leaves) * weight).sum().backward()
        grads += [t.grad for t in leaves]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.invariance
def test_flash_varlen_hands_flash_attn_what_it_documents(fake_flash_attn):
    q, k, v, cu_seqlens = qkv()
    out = flash_varlen(q, k, v, cu_seqlens, max(LENGTHS), 0.3)
    assert len(fake_flash_attn.calls) == 1
    torch.testing.assert_close(out, attention_by_hand(q, k, v, cu_seqlens, 0.3), atol=1e-12, rtol=0)


@pytest.mark.invariance
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_whole_model_on_flash_attn_equals_the_same_model_on_sdpa(fake_flash_attn, kind):
    model = tiny_model(kind, attention=NAME)
    batch = pack(random_trajectories(), 4096)[0]
    through_flash = packed_forward(model.model, batch, flash_varlen)
    assert len(fake_flash_attn.calls) == model.config.num_hidden_layers
    torch.testing.assert_close(through_flash, packed_forward(model.model, batch), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and flash-attn")
def test_real_flash_attention_equals_sdpa_on_a_gpu():
    pytest.importorskip("flash_attn")
    q, k, v, cu_seqlens = qkv(head_dim=64, dtype=torch.bfloat16, device="cuda")
    expected = sdpa_varlen(q.float(), k.float(), v.float(), cu_seqlens, max(LENGTHS), 0.125)
    out = flash_varlen(q, k, v, cu_seqlens, max(LENGTHS), 0.125)
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


def test_flash_attention_that_is_not_installed_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    q, k, v, cu_seqlens = qkv()
    with pytest.raises(MissingExtraError, match=r"assay-rl\[gpu\]"):
        flash_varlen(q, k, v, cu_seqlens, 7, 0.3)


def test_flash_is_chosen_on_cuda_in_half_precision_where_it_is_installed_and_nowhere_else(fake_flash_attn):
    import importlib.machinery

    fake_flash_attn.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    cuda = torch.device("cuda")
    assert choose_varlen(cuda, torch.bfloat16) is flash_varlen
    assert choose_varlen(cuda, torch.float32) is sdpa_varlen
    assert choose_varlen(CPU, torch.bfloat16) is sdpa_varlen
    assert choose_varlen(cuda, torch.bfloat16, "sdpa") is sdpa_varlen
    assert choose_varlen(CPU, torch.float32, "flash") is flash_varlen
    del sys.modules["flash_attn"]


# ---- packed equals unpacked --------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_packed_hidden_states_equal_those_of_each_sequence_alone(kind):
    packed, alone = tiny_model(kind, attention=NAME), tiny_model(kind, attention="eager")
    trajectories = random_trajectories()
    batch = pack(trajectories, 4096)[0]
    hidden = packed_forward(packed.model, batch)
    pieces = hidden.split((batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist())
    for i, piece in zip(batch.sequence_index, pieces, strict=True):
        ids = torch.tensor([trajectories[i].prompt_ids + trajectories[i].response_ids])
        expected = alone.model(ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(piece, expected, atol=1e-5, rtol=0)


# ---- the trap ----------------------------------------------------


def two_segments(first_token):
    a, b = trajectory([first_token, 20, 30, 40], [50, 60]), trajectory([7, 17, 27], [37, 47])
    return pack([a, b], 4096)[0]


def second_segment_logits(model, first_token, **kwargs):
    batch = two_segments(first_token)
    with torch.no_grad():
        logits = model(input_ids=batch.ids_T[None], position_ids=batch.position_T[None], **kwargs).logits[0]
    return logits[int(batch.cu_seqlens[1]) :]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["cache", "mask of ones"])
def test_the_trap_is_real_other_forms_of_calling_a_plain_model_read_across_segments(attention, form):
    """Why `assay_packed` exists. A token changed in segment 0 must not reach segment 1; in these forms it does, without
    a word. Should this test ever fail, transformers closed the trap itself."""
    model = tiny_model(attention=attention)
    kwargs = (
        {"use_cache": True} if form == "cache" else {"use_cache": False, "attention_mask": torch.ones(1, 11).long()}
    )
    leak = second_segment_logits(model, 10, **kwargs) - second_segment_logits(model, 11, **kwargs)
    assert leak.abs().max() > 1e-2


@pytest.mark.invariance
def test_a_token_changed_in_one_segment_does_not_reach_another():
    model = tiny_model(attention=NAME)
    hidden = [packed_forward(model.model, two_segments(first)) for first in (10, 11)]
    assert (hidden[0][:6] - hidden[1][:6]).abs().max() > 1e-2
    assert torch.equal(hidden[0][6:], hidden[1][6:])


def test_without_borders_the_forward_raises():
    model, batch = tiny_model(attention=NAME), two_segments(10)
    with pytest.raises(RuntimeError, match="cu_seqlens"):
        model(input_ids=batch.ids_T[None], position_ids=batch.position_T[None], use_cache=False)
    with pytest.raises(RuntimeError, match="cu_seqlens"):
        model(input_ids=batch.ids_T[None])


def call_with_borders(model, batch, **kwargs):
    arguments = {"input_ids": batch.ids_T[None], "position_ids": batch.position_T[None], "use_cache": False,
                 "cu_seqlens": batch.cu_seqlens, "max_seqlen": batch.max_seqlen}  # fmt: skip
    return model(**(arguments | kwargs))


def test_with_a_mask_of_any_kind_the_forward_raises():
    model, batch = tiny_model(attention=NAME), two_segments(10)
    for mask in (torch.zeros(1, 1, 11, 11), torch.ones(1, 11).long(), torch.tensor([[0] * 3 + [1] * 8])):
        with pytest.raises(RuntimeError, match="mask"):
            call_with_borders(model, batch, attention_mask=mask)


def test_a_cache_that_holds_anything_makes_the_forward_raise():
    model, batch = tiny_model(attention=NAME), two_segments(10)
    first = call_with_borders(model, batch, use_cache=True)  # an empty cache changes nothing
    assert torch.equal(first.logits, call_with_borders(model, batch).logits)
    with pytest.raises(RuntimeError, match="cache"):
        call_with_borders(model, batch, use_cache=True, past_key_values=first.past_key_values)


def test_borders_that_do_not_fit_the_row_raise():
    model, batch = tiny_model(attention=NAME), two_segments(10)
    with pytest.raises(RuntimeError, match="one row of 9 tokens"):
        call_with_borders(model, batch, cu_seqlens=torch.tensor([0, 6, 9], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="one row"):
        call_with_borders(model, batch, input_ids=batch.ids_T[None].repeat(2, 1),
                          position_ids=batch.position_T[None].repeat(2, 1))  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_forward_refuses_a_model_loaded_with_another_attention(attention):
    with pytest.raises(RuntimeError, match=f"attn_implementation='{attention}'"):
        packed_forward(tiny_model(attention=attention).model, two_segments(10))


def test_attention_dropout_raises_in_training():
    model = tiny_model(attention=NAME).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(RuntimeError, match="dropout"):
        packed_forward(model.model, two_segments(10))
