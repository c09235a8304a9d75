"""What is asked of vLLM and how its answers become trajectories, without vLLM."""

from types import SimpleNamespace

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from rollout.engine import Prompt, SamplingParams
from rollout.trajectory import Finish
from rollout.vllm_colocated import write_model_folder
from rollout.vllm_engine import OURS, VllmEngine, context_tokens
from rollout.vllm_requests import (
    Answer,
    SampleRequest,
    answer_of_json,
    answer_of_output,
    needs_scoring,
    score_request,
    trajectory,
)
from rollout.vllm_server import Server, completion_body
from tests.helpers import CPU, EOS, tiny_architecture, tokenizer
from verifiers.errors import ConfigError, MissingExtraError, ModelError, RunError
from verifiers.options import parse_options

TEMPERED = SamplingParams(16, temperature=0.8, top_p=0.9, stop=("\n",))
PROMPT = Prompt("apples", 3, [5, 6, 7])


def logprob(value):
    return SimpleNamespace(logprob=value)


def ask(sampling):
    return SampleRequest(PROMPT.ids, sampling, (EOS, 9), seed=77)


# ---- requests -------------------------------------------------------------------------------------------------------


def test_a_request_has_one_sample_its_own_seed_and_our_end_tokens_only():
    fields = ask(TEMPERED).fields()
    assert (fields["n"], fields["seed"]) == (1, 77)
    assert fields["stop_token_ids"] == [EOS, 9]
    assert fields["ignore_eos"]  # else vLLM also ends at the end tokens of the model's generation config
    assert (fields["temperature"], fields["top_p"], fields["max_tokens"]) == (0.8, 0.9, 16)


def test_a_stop_string_stays_in_the_response():
    fields = ask(TEMPERED).fields()
    assert fields["stop"] == ["\n"]
    assert fields["include_stop_str_in_output"]


def test_greedy_ignores_temperature_and_top_p():
    fields = ask(SamplingParams(16, temperature=0.8, top_p=0.9, greedy=True)).fields()
    assert (fields["temperature"], fields["top_p"]) == (0.0, 1.0)


def test_a_server_is_told_every_default_that_a_generation_config_could_change():
    body = completion_body("m", ask(TEMPERED))
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert body["return_token_ids"]
    assert body["prompt"] == [5, 6, 7]


def test_scoring_asks_for_the_log_probs_of_prompt_and_response():
    request = score_request([5, 6], [7, 8])
    assert request.prompt_ids == [5, 6, 7, 8]
    assert request.fields()["prompt_logprobs"] == 0
    assert "logprobs" not in request.fields()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(4), False),
        (SamplingParams(4, temperature=0.8), True),
        (SamplingParams(4, top_p=0.9), True),
        (SamplingParams(4, temperature=0.8, greedy=True), False),
    ],
)
def test_only_what_was_not_drawn_from_the_model_itself_needs_scoring(sampling, expected):
    assert needs_scoring(sampling) is expected


# ---- answers --------------------------------------------------------------------------------------------------------


def test_the_library_s_output_gives_the_sampled_tokens_and_their_log_probs():
    completion = SimpleNamespace(token_ids=[7, EOS], finish_reason="stop",
                                 logprobs=[{7: logprob(-0.5), 8: logprob(-0.1)}, {EOS: logprob(-1.0)}])  # fmt: skip
    answer = answer_of_output(ask(TEMPERED), SimpleNamespace(outputs=[completion]))
    assert answer == Answer([7, EOS], [-0.5, -1.0], "stop")


def test_the_library_s_prompt_log_probs_score_the_response_only():
    output = SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=[1], logprobs=None, finish_reason="length")],
        prompt_logprobs=[None, {6: logprob(-9.0)}, {7: logprob(-0.5)}, {8: logprob(-0.25), 9: logprob(-0.1)}],
    )
    assert answer_of_output(score_request([5, 6], [7, 8]), output).logprobs == [-0.5, -0.25]


def test_the_server_s_answers_mean_the_same():
    choice = {"token_ids": [7, EOS], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop"}
    assert answer_of_json(ask(TEMPERED), {"choices": [choice]}) == Answer([7, EOS], [-0.5, -1.0], "stop")
    prompt = [None, {"6": {"logprob": -9.0}}, {"7": {"logprob": -0.5}}, {"8": {"logprob": -0.25}}]
    scored = answer_of_json(score_request([5, 6], [7, 8]), {"choices": [{"prompt_logprobs": prompt}]})
    assert scored.logprobs == [-0.5, -0.25]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "hello", "finish_reason": "stop"},
        {"token_ids": None, "logprobs": None, "finish_reason": "stop"},
        {"token_ids": [7], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop"},
        {"token_ids": [], "logprobs": {"token_logprobs": []}, "finish_reason": "stop"},
    ],
)
def test_an_answer_without_token_ids_and_log_probs_is_refused(choice):
    with pytest.raises(RunError, match="lacks"):
        answer_of_json(ask(TEMPERED), {"choices": [choice]})


# ---- trajectories ---------------------------------------------------------------------------------------------------


def built(ids, finish, sampling=TEMPERED):
    answer = Answer(ids, [-0.5] * len(ids), finish)
    return trajectory(PROMPT, 2, answer, sampling, tokenizer(), {EOS}, version=4)


def test_the_end_token_is_kept_in_the_ids_and_not_in_the_text():
    ids = tokenizer().encode("7\n", add_special_tokens=False)
    ended = built([*ids, EOS], "stop")
    assert ended.response_ids == [*ids, EOS]
    assert ended.text == "7\n"
    assert built(ids, "stop").text == "7\n"
    assert (ended.example_id, ended.group, ended.sample, ended.weights_version) == ("apples", 3, 2, 4)


def test_finish_reasons_are_ours_and_any_other_stops_the_run():
    assert built([7], "stop").finish is Finish.STOP
    assert built([7], "length").finish is Finish.LENGTH
    with pytest.raises(RunError, match="'abort'"):
        built([7], "abort")


def test_both_log_probs_are_vllm_s_own_number_only_where_it_means_both():
    plain = built([7], "stop", SamplingParams(4))
    assert plain.logp_sampled == plain.logp_model == [-0.5]
    assert built([7], "stop").logp_model == []  # to be scored
    greedy = built([7], "stop", SamplingParams(4, greedy=True))
    assert (greedy.logp_sampled, greedy.logp_model) == ([0.0], [-0.5])


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server_url": "localhost:8000"}, "must be of the form"),
        ({"server_url": "http://gpu1:8000/v1", "weights_folder": "w"}, "must be of the form"),
        ({"server_url": "http://gpu1:8000"}, "weights_folder is for transfer=folder"),
        ({"server_url": "http://gpu1:8000", "transfer": "nccl", "weights_folder": "w"}, "weights_folder is for"),
        ({"weights_folder": "w"}, "weights_folder is for a server"),
        ({"arguments": {"dtype": "float16"}}, "must not set dtype"),
        ({"memory": 0.3}, "unknown key 'rollout.engine_options.memory'"),
    ],
)
def test_options_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(VllmEngine.Options, values, "rollout.engine_options")


def test_what_makes_log_probs_right_cannot_be_overridden():
    assert {"logprobs_mode", "generation_config", "tensor_parallel_size"} <= OURS


def test_the_context_has_room_for_the_token_that_scoring_throws_away():
    assert context_tokens(LlamaConfig(max_position_embeddings=512), 100) == 101
    assert context_tokens(LlamaConfig(max_position_embeddings=100), 100) == 100


def test_without_vllm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"assay-rl\[vllm\]"):
        VllmEngine.check(tiny_architecture(), VllmEngine.Options())
    VllmEngine.check(tiny_architecture(), VllmEngine.Options(server_url="http://gpu1:8000", weights_folder="w"))


def test_a_model_from_scratch_gets_the_class_that_vllm_looks_for(tmp_path):
    write_model_folder(str(tmp_path), tiny_architecture(), tokenizer())
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == EOS
    assert not list(tmp_path.glob("*.safetensors"))


# ---- server ---------------------------------------------------------------------------------------------------------


def server(answers):
    """A `Server` whose HTTP client answers from a table {path: (status, body)}."""

    def handle(request):
        status, body = answers[request.url.path]
        return httpx.Response(status, json=body)

    pusher = SimpleNamespace(push=lambda *_: None, close=lambda: None)
    return Server("http://gpu1:8000", pusher, 64, 4, 5.0, httpx.MockTransport(handle))  # type: ignore[arg-type]


def served(limit=64, mode="processed_logprobs"):
    return {
        "/v1/models": (200, {"data": [{"id": "m", "max_model_len": limit}]}),
        "/server_info": (200, {"vllm_config": {"model_config": {"logprobs_mode": mode}}}),
    }


def test_a_server_that_reports_raw_log_probs_is_refused():
    assert server(served()).model == "m"
    with pytest.raises(ModelError, match="raw_logprobs"):
        server(served(mode="raw_logprobs"))


def test_a_server_with_too_short_a_context_is_refused():
    with pytest.raises(ModelError, match="takes 63 tokens, the recipe needs 64"):
        server(served(limit=63))


def test_a_server_without_the_routes_for_weights_is_refused_with_the_setting_that_adds_them():
    with pytest.raises(RunError, match="VLLM_SERVER_DEV_MODE=1"):
        server(served() | {"/server_info": (404, {})})


def test_a_server_that_kept_its_prefix_cache_is_refused():
    answers = served() | {"/pause": (200, {}), "/reset_prefix_cache": (200, {"success": False})}
    found = server(answers)
    with pytest.raises(RunError, match="prefix cache"):
        found.load({"weight": torch.zeros(1, device=CPU)}, 1)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(RunError, match="did not answer GET /v1/models"):
        Server("http://127.0.0.1:9", SimpleNamespace(close=lambda: None), 64, 4, 1.0)  # type: ignore[arg-type]
