"""A model of this machine as the judge: what the engine generates, and nothing else."""

from types import SimpleNamespace

import pytest
import torch

from prm.judge.base import JudgeRequest, ReplyStatus, build_judge
from prm.judge.local import LocalJudge
from rollout.engine import Prompt, SamplingParams
from tests.helpers import CHAR_TOKENIZER, CPU, EOS, make_engine, tiny_model, tokenizer
from verifiers.errors import ConfigError, ModelError

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def request(content, name="r", **fields):
    return JudgeRequest(name, [{"role": "user", "content": content}], **{"max_tokens": 12} | fields)


def chat_tokenizer():
    made = tokenizer()
    made.chat_template = CHAT
    return made


def greedy_ids(text, tokens=12):
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return make_engine(tiny_model()).generate([Prompt("q", 0, ids)], 1, SamplingParams(tokens, greedy=True), 0)[0]


def judge(eos_ids=(EOS,), tok=None, **options):
    engine = make_engine(tiny_model(), eos_ids=list(eos_ids))
    return LocalJudge(engine, tok or chat_tokenizer(), **{"max_prompt_tokens": 40} | options)


def test_at_temperature_zero_the_reply_is_the_engines_most_likely_one_through_the_chat_template():
    expected = greedy_ids("u:12+3;a:")
    end = next(i for i in range(3, 12) if expected.response_ids[i] not in expected.response_ids[:i])
    reply = judge([expected.response_ids[end]]).ask([request("12+3")])[0]
    assert reply.status is ReplyStatus.OK
    assert reply.text == tokenizer().decode(expected.response_ids[:end])
    assert (reply.tokens_in, reply.tokens_out) == (len("u:12+3;a:"), end + 1)


def test_a_reply_that_hits_the_limit_is_no_judgement():
    reply = judge(eos_ids=[]).ask([request("12+3")])[0]
    assert (reply.text, reply.status) == (None, ReplyStatus.TRUNCATED)


def test_an_empty_reply_is_none():
    first = greedy_ids("u:12+3;a:").response_ids[0]
    assert judge([first]).ask([request("12+3")])[0].status is ReplyStatus.REFUSED


def test_a_tokenizer_without_a_template_gets_plain_text():
    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}]
    seen = []

    class Spy:
        def generate(self, prompts, *rest):
            seen.extend(prompts)
            return make_engine(tiny_model()).generate(prompts, *rest)

    assert not tokenizer().chat_template
    LocalJudge(Spy(), tokenizer(), max_prompt_tokens=40).ask([JudgeRequest("r", messages, 4)])
    assert tokenizer().decode(seen[0].ids, skip_special_tokens=True) == "1\n\n2\n\n"


def test_replies_come_in_order_whatever_their_sampling_and_company():
    asked = [request(f"{i}+1", f"r{i}", max_tokens=6 + i % 2, temperature=(0.0, 1.0, 2.0)[i % 3]) for i in range(7)]
    eos = list(range(5, 60))  # ends early, so that most replies have a text
    together = [(r.text, r.status) for r in judge(eos).ask(asked)]
    assert together == [(r.text, r.status) for one in asked for r in judge(eos).ask([one])]
    assert len(together) == 7


def test_samples_differ_and_the_same_seed_repeats():
    def said(seed):
        asked = [request("1+1", temperature=2.0, sample=k) for k in range(6)]
        return [r.detail for r in judge([], seed=seed).ask(asked)]

    assert len(set(said(0))) > 1
    assert said(0) == said(0) != said(1)


def test_a_prompt_that_is_too_long_is_not_asked_and_the_others_are():
    replies = judge(eos_ids=[]).ask([request("1" * 60), request("1")])
    assert [r.status for r in replies] == [ReplyStatus.PROMPT_TOO_LONG, ReplyStatus.TRUNCATED]
    assert replies[0].attempts == 0


def test_a_template_that_refuses_is_an_error_for_the_person():
    strict = tokenizer()
    strict.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match="chat template"):
        judge(tok=strict).ask([request("1")])


def test_a_recipe_names_its_model_and_the_runs_random_numbers_stay_as_they_were():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    part = {"kind": "local", "model": {"scratch": sizes, "tokenizer": str(CHAR_TOKENIZER)}, "max_prompt_tokens": 30,
            "max_reply_tokens": 8}  # fmt: skip
    context = SimpleNamespace(seed=3, device=CPU)
    before = torch.get_rng_state()
    made = build_judge(part, context)
    assert torch.equal(torch.get_rng_state(), before)
    reply = made.ask([request("1+2", max_tokens=8)])[0]
    assert reply.attempts == 1
    assert reply.tokens_in == len("1+2\n\n")
    made.close()
    with pytest.raises(ConfigError, match=r"judge\.model"):
        build_judge({"kind": "local", "model": {}}, context)
