"""The judge behind an OpenAI-compatible endpoint, against a real server in another process."""

import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from prm.judge import cache
from prm.judge.base import JudgeRequest, ReplyStatus
from prm.judge.openai import OpenAIJudge
from rollout.world import World
from verifiers.errors import ConfigError, RunError
from verifiers.options import parse_options

KEY = "sk-very-secret-0123456789"
CODE = str(Path(__file__).with_name("judge_server.py"))


class ServerProcess:
    def __init__(self, *arguments):
        self.process = subprocess.Popen([sys.executable, CODE, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def log(self):
        with urllib.request.urlopen(self.url + "/log", timeout=5) as reply:
            return json.load(reply)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    process = ServerProcess()
    yield process
    process.stop()


@pytest.fixture
def judge(server):
    made = []

    def make(url=server.url, seed=0, world=None, **options):
        defaults = {"model": "m", "timeout_s": 30.0, "backoff_s": 0.01, "max_attempts": 3}
        values = {"base_url": url + "/v1", **defaults, **options}
        made.append(OpenAIJudge(parse_options(OpenAIJudge.Options, values), seed=seed, world=world))
        return made[-1]

    yield make
    for one in made:
        one.close()


def request(content, name="r", **fields):
    return JudgeRequest(name, [{"role": "user", "content": content}], **fields)


def ask(judge, *contents):
    return judge.ask([request(content, str(i)) for i, content in enumerate(contents)])


# ---- answers -----------------------------------------------------------


def test_replies_come_in_order_with_their_tokens(judge):
    replies = ask(judge(), *(f"say answer {i}" for i in range(20)))
    assert [r.text for r in replies] == [f"answer {i}" for i in range(20)]
    assert all(r.status == "ok" and r.attempts == 1 and not r.cached for r in replies)
    assert {(r.tokens_in, r.tokens_out) for r in replies} == {(10, 5)}
    assert all(r.milliseconds > 0 for r in replies)


def test_no_request_gives_no_reply(judge):
    assert judge().ask([]) == []


def test_the_server_gets_model_messages_sampling_and_extra_fields_but_no_meta(judge, server):
    j = judge(extra_body={"top_p": 0.5}, max_tokens_field="max_completion_tokens", model="big")
    messages = [{"role": "system", "content": "judge"}, {"role": "user", "content": "say fields"}]
    j.ask([JudgeRequest("a", messages, max_tokens=7, temperature=0.25, meta={"gold": "4"})])
    assert server.log()["bodies"][-1] == {
        "model": "big", "messages": messages, "max_completion_tokens": 7, "temperature": 0.25, "top_p": 0.5,
    }  # fmt: skip


def test_no_more_than_max_concurrency_requests_are_under_way_and_all_slots_are_used(judge):
    own = ServerProcess()
    try:
        j = judge(own.url, max_concurrency=3)
        waits = [j.submit([request("sleep 0.1", sample=4 * k + i) for i in range(4)]) for k in range(3)]
        assert all(r.status == "ok" for wait in waits for r in wait())
        assert own.log()["max_in_flight"] == 3
        assert own.log()["calls"] == 12
    finally:
        own.stop()


def test_submit_returns_before_the_replies_are_there(judge):
    j = judge()
    ask(j, "say awake")
    started = time.monotonic()
    wait = j.submit([request("sleep 0.5")])
    assert time.monotonic() - started < 0.4
    assert wait()[0].status == "ok"


def test_equal_requests_of_a_batch_are_asked_once(judge, server):
    replies = ask(judge(), "say twin", "say twin", "say other")
    assert [r.text for r in replies] == ["twin", "twin", "other"]
    assert [r.cached for r in replies] == [False, True, False]
    assert len(server.log()["times"]["say twin"]) == 1


def test_samples_of_one_question_are_asked_each(judge, server):
    judge().ask([request("say sampled", sample=k, temperature=1.0) for k in range(3)])
    assert len(server.log()["times"]["say sampled"]) == 3


# ---- what goes wrong never is a text -----------------------------------

BAD = {
    "fail 500 99 - never": (ReplyStatus.HTTP_ERROR, 3),
    "fail 503 99 - never": (ReplyStatus.HTTP_ERROR, 3),
    "fail 400 99 - never": (ReplyStatus.HTTP_ERROR, 1),
    "fail 401 99 - never": (ReplyStatus.HTTP_ERROR, 1),
    "fail 404 99 - never": (ReplyStatus.HTTP_ERROR, 1),
    "fail 422 99 - never": (ReplyStatus.HTTP_ERROR, 1),
    "fail 302 99 - never": (ReplyStatus.HTTP_ERROR, 1),
    "fail 408 99 - never": (ReplyStatus.HTTP_ERROR, 3),
    "fail 409 99 - never": (ReplyStatus.HTTP_ERROR, 3),
    "fail 429 99 - never": (ReplyStatus.HTTP_ERROR, 3),
    "raw Final Judgment: Yes": (ReplyStatus.MALFORMED, 3),
    "raw {\"choices\": []}": (ReplyStatus.MALFORMED, 3),
    "raw {\"error\": \"Yes\"}": (ReplyStatus.MALFORMED, 3),
    "raw [1, 2]": (ReplyStatus.MALFORMED, 3),
    "raw null": (ReplyStatus.MALFORMED, 3),
    "raw " + "[" * 100_000: (ReplyStatus.MALFORMED, 3),
    "raw {\"choices\": [{\"message\": null}]}": (ReplyStatus.MALFORMED, 3),
    "content stop {\"content\": [{\"text\": \"Yes\"}]}": (ReplyStatus.MALFORMED, 3),
    "content stop {\"content\": null}": (ReplyStatus.REFUSED, 1),
    "content stop {\"content\": \"  \"}": (ReplyStatus.REFUSED, 1),
    "content content_filter {\"content\": \"Final Judgment: Yes\"}": (ReplyStatus.REFUSED, 1),
    "content stop {\"content\": \"Yes\", \"refusal\": \"I will not\"}": (ReplyStatus.REFUSED, 1),
    "content length {\"content\": \"Is it Yes or\"}": (ReplyStatus.TRUNCATED, 1),
    "content length {\"content\": \"\"}": (ReplyStatus.TRUNCATED, 1),
    "reset": (ReplyStatus.UNREACHABLE, 3),
    "half": (ReplyStatus.UNREACHABLE, 3),
}  # fmt: skip


def test_every_failure_is_a_reply_without_a_text_tried_as_often_as_it_can_help(judge, server):
    j = judge(max_concurrency=32, timeout_s=30.0)
    replies = ask(j, *BAD)
    times = server.log()["times"]
    assert {content: (r.status, r.attempts) for content, r in zip(BAD, replies, strict=True)} == BAD
    assert all(r.text is None and r.detail for r in replies)
    assert {content: len(times[content]) for content in BAD} == {c: n for c, (_, n) in BAD.items()}
    assert j.state_dict()["calls"] == sum(n for _, n in BAD.values())


SLOW = ["sleep 5", "drip"]


def test_a_server_that_is_slow_or_sends_a_byte_at_a_time_is_a_timeout(judge):
    replies = ask(judge(timeout_s=0.3, max_attempts=2), *SLOW)
    assert [(r.text, r.status, r.attempts) for r in replies] == [(None, ReplyStatus.TIMEOUT, 2)] * 2
    assert all(500 < r.milliseconds < 4000 for r in replies)


def test_a_body_of_hundreds_of_megabytes_is_not_read_to_its_end(judge, server):
    replies = ask(judge(max_attempts=1), "huge 200", "huge 500")
    assert [r.status for r in replies] == [ReplyStatus.MALFORMED, ReplyStatus.HTTP_ERROR]
    assert all(r.text is None and len(r.detail) < 600 for r in replies)
    assert server.log()["huge_bytes_sent"] < 60 * 2**20


def test_500s_then_success_is_a_success_and_all_calls_are_counted(judge):
    j = judge()
    reply = ask(j, "fail 500 2 - Yes")[0]
    assert (reply.text, reply.status, reply.attempts) == ("Yes", "ok", 3)
    assert j.state_dict() == {"calls": 3, "tokens_in": 10, "tokens_out": 5}


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_waited_for(judge, server, code):
    content = f"fail {code} 1 1 waited"
    assert ask(judge(), content)[0].text == "waited"
    first, second = server.log()["times"][content]
    assert second - first >= 0.99


@pytest.mark.parametrize("value", ["3600", "9" * 40, "Fri,_31_Dec_2999_23:59:59_GMT"])
def test_a_retry_after_that_is_too_long_ends_the_tries(judge, value):
    reply = ask(judge(max_retry_after_s=60.0), f"fail 429 1 {value} never")[0]
    assert (reply.status, reply.attempts) == (ReplyStatus.HTTP_ERROR, 1)


@pytest.mark.parametrize("value", ["soon", "-5", "Fri,_31_Dec_1999_23:59:59_GMT", "1e9", "²"])
def test_a_retry_after_that_says_nothing_is_no_wait(judge, value):
    assert ask(judge(), f"fail 429 1 {value} yes")[0].text == "yes"


def test_the_waits_double_up_to_their_limit_and_are_the_same_for_the_same_seed(judge):
    j = judge(backoff_s=1.0, max_backoff_s=5.0)
    waits = [j._backoff_s("key", attempt) for attempt in (1, 2, 3, 4, 2000)]
    for wait, whole in zip(waits, [1.0, 2.0, 4.0, 5.0, 5.0], strict=True):
        assert whole / 2 <= wait <= whole
    assert waits == [judge(backoff_s=1.0, max_backoff_s=5.0)._backoff_s("key", a) for a in (1, 2, 3, 4, 2000)]
    assert waits[0] != judge(backoff_s=1.0, seed=1)._backoff_s("key", 1)


def test_a_server_that_dies_in_mid_batch_costs_the_rest_and_no_more(judge):
    own = ServerProcess(8)
    try:
        j = judge(own.url, max_concurrency=2, max_attempts=2)
        replies = ask(j, *(f"say {i}" for i in range(24)))
    finally:
        own.stop()
    answered = [r for r in replies if r.text is not None]
    assert 7 <= len(answered) <= 8  # one may have been under way when the other killed the server
    assert all(r.status is ReplyStatus.UNREACHABLE and r.attempts == 2 for r in replies if r.text is None)
    assert all(r.text == str(i) for i, r in enumerate(replies) if r.text is not None)


def test_nobody_at_the_address_is_unreachable(judge):
    assert ask(judge("http://127.0.0.1:9"), "say x")[0].status is ReplyStatus.UNREACHABLE
    assert ask(judge("http://no-such-host.invalid"), "say x")[0].status is ReplyStatus.UNREACHABLE


def test_lone_surrogates_in_a_reply_can_be_stored(judge, tmp_path):
    j = judge(cache_file=str(tmp_path / "cache"))
    reply = ask(j, 'content stop {"content": "Yes \\ud800"}')[0]
    assert reply.text == "Yes �"


def test_closing_withdraws_what_is_under_way(judge):
    j = judge()
    wait = j.submit([request("sleep 4")])
    time.sleep(0.1)
    started = time.monotonic()
    j.close()
    assert time.monotonic() - started < 2
    with pytest.raises(CancelledError):
        wait()


# ---- cache -------------------------------------------------------------


def test_a_second_run_with_the_server_dead_answers_from_the_cache(judge, tmp_path):
    file, own = str(tmp_path / "deep" / "cache.sqlite"), ServerProcess()
    contents = [f"say {i}" for i in range(5)]
    try:
        first = judge(own.url, cache_file=file)
        before = ask(first, *contents, "fail 400 9 - x")
        first.close()
    finally:
        own.stop()
    second = judge(own.url, cache_file=file, max_attempts=1)
    after = ask(second, *contents, "fail 400 9 - x")
    assert [r.text for r in after] == [r.text for r in before] == ["0", "1", "2", "3", "4", None]
    assert all(r.cached and r.attempts == 0 for r in after[:5])
    assert after[5].status is ReplyStatus.UNREACHABLE, "a failure is not kept"
    assert second.state_dict()["calls"] == 1


def test_another_model_or_sampling_is_another_entry_and_the_id_and_the_address_are_not(judge, server, tmp_path):
    file = str(tmp_path / "cache")
    asked = request("say keyed")
    judge(cache_file=file).ask([asked])
    assert judge(cache_file=file).ask([request("say keyed", "another id")])[0].cached
    moved = judge(server.url.replace("127.0.0.1", "localhost"), cache_file=file)
    assert moved.ask([asked])[0].cached
    for other in (request("say keyed", temperature=0.5), request("say keyed", max_tokens=3),
                  request("say keyed", sample=1), request("say keyed ")):  # fmt: skip
        assert not judge(cache_file=file).ask([other])[0].cached
    assert not judge(cache_file=file, model="other").ask([asked])[0].cached
    assert not judge(cache_file=file, extra_body={"top_p": 0.9}).ask([asked])[0].cached


def test_several_processes_share_one_cache_file(tmp_path):
    file = str(tmp_path / "cache")
    code = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("cache", {cache.__file__!r})  # without torch: quick to start
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cache = module.ReplyCache({file!r})
for i in range(200):
    cache.put(f"key {{i}}", module.CachedReply(f"text {{i}}", i, 2))
    assert cache.get(f"key {{i}}") == (f"text {{i}}", i, 2)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    stored = cache.ReplyCache(file)
    assert stored.get("key 199") == ("text 199", 199, 2)
    stored.close()


def test_a_cache_that_cannot_be_used_is_an_error_of_ours(judge, tmp_path):
    (tmp_path / "damaged").write_bytes(b"this is no database" * 1000)
    with pytest.raises(RunError, match="damaged"):
        judge(cache_file=str(tmp_path / "damaged"))
    with pytest.raises(RunError, match="cannot be used"):
        judge(cache_file=str(tmp_path))
    j = judge(cache_file=str(tmp_path / "lost"))
    with sqlite3.connect(tmp_path / "lost") as db:
        db.execute("DROP TABLE replies")
    db.close()
    with pytest.raises(RunError, match="no such table"):
        ask(j, "say x", "say y")


# ---- budget ------------------------------------------------------------


def test_a_used_up_budget_of_calls_asks_no_more_and_the_first_requests_are_served(judge, server):
    j = judge(max_calls=3, max_concurrency=2)
    replies = ask(j, *(f"say budget {i}" for i in range(6)))
    assert [r.status for r in replies] == ["ok"] * 3 + ["refused_budget"] * 3
    assert all(r.text is None and r.attempts == 0 and "max_calls=3" in r.detail for r in replies[3:])
    assert not any(f"say budget {i}" in server.log()["times"] for i in (3, 4, 5))


def test_a_used_up_budget_of_tokens_asks_no_more(judge):
    j = judge(max_total_tokens=40, max_concurrency=1)  # 15 a reply
    assert [r.status for r in ask(j, *(f"say t {i}" for i in range(5)))] == ["ok"] * 3 + ["refused_budget"] * 2
    assert j.state_dict() == {"calls": 3, "tokens_in": 30, "tokens_out": 15}


def test_retries_count_and_the_budget_ends_them(judge):
    reply = ask(judge(max_calls=2, max_attempts=5), "fail 500 99 - x")[0]
    assert (reply.status, reply.attempts) == (ReplyStatus.REFUSED_BUDGET, 2)
    assert "HTTP 500" in reply.detail


def test_a_resumed_run_goes_on_counting(judge):
    first = judge(max_calls=3)
    ask(first, "say a1", "say a2")
    second = judge(max_calls=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [r.status for r in ask(second, "say a3", "say a4")] == ["ok", "refused_budget"]
    assert second.state_dict() == {"calls": 3, "tokens_in": 30, "tokens_out": 15}


class ThreadOfRanks(World):
    """A rank that is a thread of this process."""

    def __init__(self, rank, said, all_said):
        super().__init__(rank=rank, size=len(said))
        object.__setattr__(self, "said", said)
        object.__setattr__(self, "all_said", all_said)

    def gather(self, value):
        self.said[self.rank] = value
        self.all_said.wait(timeout=30)
        found = list(self.said)
        self.all_said.wait(timeout=30)
        return found


@pytest.fixture
def ranks(judge):
    """(judges of so many ranks with one budget, what all of them say of their state when all are asked)."""

    def make(count, **options):
        said, all_said = [None] * count, threading.Barrier(count)
        judges = [judge(world=ThreadOfRanks(rank, said, all_said), **options) for rank in range(count)]

        def state():
            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(OpenAIJudge.state_dict, judges))

        return judges, state

    return make


def answered(judge, *contents):
    return sum(r.status == "ok" for r in ask(judge, *contents))


def test_ranks_together_never_pass_the_budget_and_what_one_leaves_is_dealt_out_when_they_meet(ranks):
    (first, second), state = ranks(2, max_calls=5)
    replies = ask(first, *(f"say first {i}" for i in range(9)))
    assert [r.status for r in replies] == ["ok"] * 3 + ["refused_budget"] * 6
    assert "rank 0 of 2" in replies[-1].detail
    assert answered(second, "say second") == 1
    assert state() == [{"calls": 4, "tokens_in": 40, "tokens_out": 20}] * 2
    assert answered(second, "say more 1", "say more 2") == 0
    assert answered(first, "say more 3", "say more 4") == 1
    assert state()[0]["calls"] == 5
    assert answered(first, "say more 5") + answered(second, "say more 6") == 0


def test_a_resumed_run_of_more_ranks_deals_out_what_was_left(ranks):
    before = {"calls": 4, "tokens_in": 40, "tokens_out": 20}
    judges, state = ranks(3, max_calls=6)
    for one in judges:
        one.load_state_dict(before)
    assert [answered(one, f"say {i} a", f"say {i} b") for i, one in enumerate(judges)] == [1, 1, 0]
    assert state() == [{"calls": 6, "tokens_in": 60, "tokens_out": 30}] * 3


def test_ranks_share_a_budget_of_tokens(ranks):
    judges, state = ranks(2, max_total_tokens=31, max_concurrency=1)  # 16 and 15; 15 a reply
    assert [answered(one, *(f"say {i} {k}" for k in range(4))) for i, one in enumerate(judges)] == [2, 1]
    assert state()[0] == {"calls": 3, "tokens_in": 30, "tokens_out": 15}


def test_a_budget_of_nothing_still_reads_the_cache(judge, tmp_path):
    file = str(tmp_path / "cache")
    ask(judge(cache_file=file), "say kept")
    replies = ask(judge(cache_file=file, max_calls=0), "say kept", "say new")
    assert [r.status for r in replies] == ["ok", "refused_budget"]


@pytest.mark.parametrize("usage", ["null", "{}", '"many"', '{"prompt_tokens": -5, "completion_tokens": true}',
                                   '{"prompt_tokens": 1e99, "completion_tokens": "7"}'])  # fmt: skip
def test_tokens_that_a_server_does_not_count_are_estimated(judge, usage):
    j = judge()
    reply = ask(j, f"usage {usage}")[0]
    assert reply.text == "Yes"
    assert reply.tokens_out == 1
    assert 10 < reply.tokens_in < 100
    assert j.state_dict()["tokens_in"] == reply.tokens_in


# ---- the key -----------------------------------------------------------


def test_the_key_goes_to_the_server_and_nowhere_else(judge, server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    j = judge(api_key_env="JUDGE_KEY", cache_file=str(tmp_path / "cache"), max_attempts=1)
    replies = ask(j, "echo 200", "echo 401", "echo 500", "reset", "say done")
    assert server.log()["authorization"] == f"Bearer {KEY}"
    assert replies[0].text == "Bearer [API key]"
    assert "[API key]" in replies[1].detail
    shown = [repr(j), str(j.options), repr(replies), caplog.text, json.dumps(j.state_dict())]
    j.close()
    shown += [f.read_bytes().decode("utf-8", "replace") for f in tmp_path.iterdir()]
    assert not any("very-secret" in text for text in shown)


def test_a_key_that_is_missing_or_none_is_refused_before_compute(judge, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        judge(api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-two\nlines-secret")
    with pytest.raises(ConfigError, match="does not hold an API key") as error:
        judge(api_key_env="JUDGE_KEY")
    assert "secret" not in str(error.value)


def test_a_key_in_the_place_of_the_variables_name_is_refused_and_not_repeated(judge):
    with pytest.raises(ConfigError, match="never the key itself") as error:
        judge(api_key_env=KEY)
    assert "very-secret" not in str(error.value)


# ---- options and use ---------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"base_url": "localhost:8000"}, "form"), ({"base_url": "http://u:secret@h/v1"}, "api_key_env"),
    ({"base_url": "http://h:99999/v1"}, "[Pp]ort"), ({"base_url": "http://h/v1?key=x"}, "form"),
    ({"base_url": f"http://{'a' * 70}.org/v1"}, "address"), ({"base_url": "http://h:0/v1"}, "port 0"),
    ({"max_attempts": 0}, "max_attempts"), ({"timeout_s": 0}, "timeout_s"), ({"extra_body": {"n": 2}}, "n: assay"),
    ({"time_out": 3}, "did you mean 'timeout_s'"),
])  # fmt: skip
def test_wrong_options_are_refused(judge, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        judge(**options)
    assert "secret" not in str(error.value)


def test_several_threads_may_ask_at_once(judge):
    j, texts = judge(), {}

    def work(k):
        texts[k] = [r.text for r in ask(j, *(f"say {k}.{i}" for i in range(5)))]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {k: [f"{k}.{i}" for i in range(5)] for k in range(4)}


def test_a_proxy_of_the_environment_does_not_stand_before_a_server_of_this_machine(judge, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(judge(), "say direct")[0].text == "direct"
