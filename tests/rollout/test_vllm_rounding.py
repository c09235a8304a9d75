"""A vLLM engine in bfloat16, apart from test_vllm_engine.py because a process can have one vLLM engine only."""

import pytest
import torch

from rollout.engine import SamplingParams
from rollout.vllm_engine import VllmEngine
from tests.helpers import EOS, prompts, tokenizer
from tests.rollout.test_vllm_engine import LENGTHS, SIZES, SMALL, tiny

pytestmark = pytest.mark.slow


def test_matrices_that_are_rounded_before_they_come_give_the_same_engine():
    """What `weights_dtype` promises to several ranks."""
    built = VllmEngine(tiny().config, tokenizer(), [EOS], **SIZES | {"dtype": torch.bfloat16},
                       options=VllmEngine.Options(arguments=SMALL))  # fmt: skip
    assert built.weights_dtype == torch.bfloat16
    weights, found = tiny().state_dict(), []
    rounded = {name: t.to(torch.bfloat16) if t.ndim > 1 else t for name, t in weights.items()}
    for version, given in enumerate((weights, rounded)):
        built.load_weights(given, version)
        sampled = built.generate(prompts(LENGTHS), 2, SamplingParams(32), seed=1)
        found.append([(t.response_ids, t.logp_sampled) for t in sampled])
    built.close()
    assert found[0] == found[1]
