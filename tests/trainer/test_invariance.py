"""What must not change loss or gradient, for every registered loss with every reduction and for every estimator: how
the batch is split into micro-batches, packed, padded, ordered, and dealt out to ranks. In float64, through a model."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from rollout.packing import pack
from tests.helpers import make_double, update_gradients
from tests.trainer.advantages.batches import run
from tests.trainer.ranks import (
    GROUPS_OF_RANK,
    OBJECTIVES,
    flat,
    kept_tokens,
    make_objective,
    make_policy,
    prompts_of,
    select,
    share,
    standard_batch,
    standard_inputs,
    take,
    work,
)
from trainer.advantages.base import ADVANTAGES
from trainer.losses.base import LossInputs
from trainer.objective import sequence_weights

pytestmark = pytest.mark.invariance

TOLERANCE = 1e-6
IDS = [f"{kind}-{reduce}" for kind, reduce in OBJECTIVES]
RANKS = range(len(GROUPS_OF_RANK))


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def batch(policy):
    return standard_batch(policy)


@pytest.fixture(scope="module")
def whole(policy, batch):
    """{objective: (loss, gradient)} of one update, the batch in a single micro-batch."""
    return {o: updated(make_objective(policy, *o), batch) for o in OBJECTIVES}


def updated(learner, batch):
    seen, metrics = update_gradients(learner, batch)
    return metrics["loss"], flat(seen)


def assert_same(found, expected):
    assert float(expected[1].abs().max()) > 1e-3  # or any two gradients would agree
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=TOLERANCE)
    torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)


# ---- losses and reductions -----------------------------------------


def test_the_batch_has_tokens_on_both_sides_of_every_choice(policy, batch):
    learner = make_objective(policy, "ppo_clip", "token")
    keep = torch.cat([kept_tokens(learner, t, o) for t, o in zip(batch.trajectories, batch.old, strict=True)])
    assert 0.1 < float(keep.double().mean()) < 0.9
    _, metrics = update_gradients(learner, batch)
    assert 0.1 < metrics["clip_fraction"] < 0.9


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
@pytest.mark.parametrize("max_tokens", [60, 30], ids=["some-packed", "hardly-packed"])
def test_micro_batches_change_nothing(policy, batch, whole, objective, max_tokens):
    assert 1 < len(pack(batch.trajectories, max_tokens)) < len(batch.trajectories)
    assert_same(updated(make_objective(policy, *objective, max_tokens), batch), whole[objective])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
def test_packing_changes_nothing(policy, batch, whole, objective):
    """Every sequence alone against all in one row."""
    assert len(pack(batch.trajectories, 1)) == len(batch.trajectories)
    assert len(pack(batch.trajectories, 4096)) == 1
    assert_same(updated(make_objective(policy, *objective, max_tokens=1), batch), whole[objective])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
def test_the_order_of_groups_and_samples_changes_nothing(policy, batch, whole, objective):
    shuffled = take(batch, [5, 4, 0, 1, 7, 6, 2, 3])
    assert [t.group for t in shuffled.trajectories] == [2, 2, 0, 0, 3, 3, 1, 1]
    assert_same(updated(make_objective(policy, *objective), shuffled), whole[objective])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_forward_of_either_side_gives_what_packing_gives(policy, batch, whole, objective, side):
    """An ordinary causal LM on a padded [N, T] batch: what trainers that do not pack compute."""
    learner = make_objective(policy, *objective)
    twin = padded_twin(policy)
    logp = padded_logp(twin, batch.trajectories, side)
    keep = [kept_tokens(learner, t, o) for t, o in zip(batch.trajectories, batch.old, strict=True)]
    length_N = torch.tensor([len(k) for k in keep])
    segment_R = torch.arange(len(keep)).repeat_interleave(length_N)
    advantage_R = torch.cat(batch.advantages).double()
    inputs = LossInputs(torch.cat(logp), torch.cat(batch.old), advantage_R, segment_R, torch.cat(keep))
    loss_R, _ = learner.loss.compute(inputs, learner.loss_options)
    kept_N = torch.stack([k.sum() for k in keep])
    chosen = learner.config.objective
    weight_N = sequence_weights(kept_N, batch.included_N, chosen.reduce, chosen.constant_tokens)
    loss = (loss_R * weight_N[segment_R] * torch.cat(keep)).sum()
    loss.backward()
    assert_same((loss.detach(), flat({n: p.grad for n, p in twin.named_parameters()})), whole[objective])


def padded_twin(policy):
    """The same weights in transformers' own model (SDPA: the eager attention rounds to float32)."""
    config = copy.deepcopy(policy.config)  # the policy's own must keep its packed attention
    twin = make_double(LlamaForCausalLM._from_config(config, attn_implementation="sdpa"))
    twin.load_state_dict(policy.model.state_dict())
    return twin


def padded_logp(model, trajectories, side):
    """Log-probs of every response, one tensor [T_i] each, from one padded forward."""
    rows = [torch.tensor(t.prompt_ids + t.response_ids) for t in trajectories]
    ids = pad_sequence(rows, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    out = []
    for row, t in enumerate(trajectories):
        score = torch.log_softmax(logits[row][mask[row].bool()][len(t.prompt_ids) - 1 : -1], -1)
        out.append(score.gather(1, torch.tensor(t.response_ids)[:, None])[:, 0])
    return out


# ---- two ranks -----------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, for every objective and estimator."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=len(RANKS))
    return [torch.load(folder / f"rank-{rank}.pt") for rank in RANKS]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
@pytest.mark.parametrize("rank", RANKS)
def test_two_ranks_that_add_up_counts_and_gradients_are_one_process(ranks, whole, objective, rank):
    assert_same(ranks[rank]["objectives"][objective], whole[objective])


def test_the_ranks_had_parts_of_unequal_size(policy, batch):
    """Or the mean of the ranks' own means would have passed as well."""
    learner = make_objective(policy, "ppo_clip", "token")
    tokens, sequences = [], []
    for rank in RANKS:
        own = share(batch, rank)
        kept = [kept_tokens(learner, batch.trajectories[i], batch.old[i]).sum() for i in own if batch.included_N[i]]
        tokens.append(int(sum(kept)))
        sequences.append(sum(int(k) > 0 for k in kept))
    assert len(set(tokens)) == len(set(sequences)) == 2


# With their default options these look beyond the group: their statistics are those of the batch of all ranks.
OF_THE_BATCH = {"oreal", "prime_rloo", "gae", "gpg", "reinforce_pp", "reinforce_pp_baseline", "stable_reinforce"}


@pytest.mark.parametrize("kind", ADVANTAGES.names())
def test_ranks_that_gather_the_batch_get_the_advantages_of_one_process(ranks, kind):
    inputs = standard_inputs()
    whole = run(kind, inputs).split(inputs.length_N.tolist())
    for rank in RANKS:
        expected = torch.cat([whole[i] for i in prompts_of(inputs, rank)])
        torch.testing.assert_close(ranks[rank]["advantages"][kind], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ADVANTAGES.names())
def test_only_estimators_with_statistics_of_the_batch_need_to_gather_it(kind):
    inputs = standard_inputs()
    whole = run(kind, inputs).split(inputs.length_N.tolist())
    same = []
    for rank in RANKS:
        own = prompts_of(inputs, rank)
        found = run(kind, select(inputs, own))
        same.append(torch.allclose(found, torch.cat([whole[i] for i in own]), atol=TOLERANCE, rtol=0))
    assert all(same) == (kind not in OF_THE_BATCH)
