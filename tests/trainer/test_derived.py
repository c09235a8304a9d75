"""Batch arithmetic and the memory estimate."""

import io
import math

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rollout.packing import first_fit_decreasing
from tests.helpers import make_config
from trainer.derived import derive, max_microbatches, render_table
from trainer.memory import MB, ModelFacts

FACTS = ModelFacts(
    parameters=1000 * MB, layer_parameters=100 * MB, vocab_size=1024, hidden_size=512, intermediate_size=1024,
    num_layers=8, num_heads=8, num_kv_heads=2, head_dim=64, tied=False,
)  # fmt: skip


def test_the_batch_is_counted_in_trajectories_prompts_and_optimizer_steps() -> None:
    config = make_config(
        {
            "rollout.prompts_per_step": 6,
            "rollout.samples_per_prompt": 4,
            "train.minibatches_per_step": 3,
            "train.steps": 10,
            "alarms.max_fault_share": 0.1,
        }
    )
    derived = derive(config, num_train=40)
    assert derived["trajectories_per_step"] == 24
    assert derived["trajectories_per_optimizer_step"] == 8
    assert derived["optimizer_steps"] == 30
    assert derived["prompts_seen"] == 60
    assert derived["epochs"] == 1.5
    assert derived["max_faults_per_step"] == 2  # 3 of 24 would be more than 10 %


def test_refills_count_in_the_upper_bound_of_generated_tokens() -> None:
    config = make_config({"rollout.max_response_tokens": 10, "objective.zero_variance.max_refills": 2})
    derived = derive(config)
    assert derived["max_tokens_generated_per_step"] == 8 * 10 * 3


def test_what_is_not_known_is_left_out() -> None:
    derived = derive(make_config())
    assert "epochs" not in derived
    assert not [name for name in derived if name.startswith("memory")]
    assert "memory_total_mb" in derive(make_config(), facts=FACTS)


def test_a_reference_model_is_needed_with_a_kl_term_only() -> None:
    assert derive(make_config())["reference_model"] == "no"
    assert derive(make_config({"objective.kl.coef": 0.1}))["reference_model"] == "yes"


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    longest=st.integers(1, 50),
    capacity=st.integers(1, 200),
)
def test_packing_never_makes_more_microbatches_than_the_bound(lengths: list[int], longest: int, capacity: int) -> None:
    lengths = [min(n, longest) for n in lengths]
    assert len(first_fit_decreasing(lengths, capacity)) <= max_microbatches(len(lengths), longest, capacity)


def test_the_bound_on_microbatches_is_reached_by_full_length_sequences() -> None:
    assert max_microbatches(10, 30, 100) == len(first_fit_decreasing([30] * 10, 100)) == 4


def test_the_total_is_the_sum_of_the_terms_of_the_peak() -> None:
    derived = derive(make_config(), facts=FACTS)
    terms = [v for k, v in derived.items() if k.startswith("memory") and k.endswith("_mb") and k != "memory_total_mb"]
    assert math.isclose(sum(terms), derived["memory_total_mb"], abs_tol=1)  # type: ignore[arg-type]


def test_the_table_shows_every_number_with_its_unit() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(render_table(derive(make_config(), num_train=40, facts=FACTS)))
    text = console.export_text()
    assert "trajectories per step" in text
    assert "4,000.0 MB (estimate)" in text
    assert "memory peak in" in text


def test_the_ranks_and_what_lies_on_their_hosts_are_named() -> None:
    derived = derive(make_config({"hardware.device": "cuda"}), facts=FACTS, ranks=4)
    assert derived["ranks"] == 4
    assert derived["memory_weights_mb"] == 1000
    assert derived["memory_host_loading_mb"] == 4000
