"""Paraphrases from a server: read or left out, checked on a share, and a file that pairs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import Example, Message, load_examples, make_pairs
from prm.judge.base import Judge, JudgeReply, ReplyStatus
from prm.paraphrase import ParaphraseOptions, Preserved, paraphrase_all, parse_rewrite
from trainer import cli
from verifiers import Runner


def block(rewrite, original="the question"):
    return f"### RESULT_START\nORIGINAL:\n{original}\nREWRITE:\n{rewrite}\n### RESULT_END"


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        (block("How many?"), "How many?"),
        ("Sure!\n" + block("Two\nlines?") + "\nDone.", "Two\nlines?"),
        (block("with REWRITE: in it"), "with REWRITE: in it"),
        (block(""), None),
        ("How many?", None),
        (block("x").removesuffix("### RESULT_END"), None),
        (block("x").replace("REWRITE:", ""), None),
        (block("x").replace("ORIGINAL:", ""), None),
        ("### RESULT_END ORIGINAL: a REWRITE: b ### RESULT_START", None),
    ],
)
def test_a_rewrite_is_read_from_the_block_or_not_at_all(reply, question):
    assert parse_rewrite(reply) == question


class Scripted(Judge):
    """replies: by question, what it rewrites to in each try. answers: by question, what it answers."""

    def __init__(self, replies, answers):
        self.replies, self.answers, self.asked = replies, answers, []

    def ask(self, requests):
        self.asked += [(r.id, r.sample, r.temperature) for r in requests]
        return [self._reply(r) for r in requests]

    def _reply(self, request):
        question = request.messages[-1]["content"].rpartition("\n\n")[2]
        text = self.answers[question] if request.id.endswith("/answer") else self.replies[question][request.sample]
        return JudgeReply(None, ReplyStatus.TIMEOUT, "late") if text is None else JudgeReply(text, ReplyStatus.OK)


def ask(name, gold="1"):
    return Example(name, (Message("user", f"Q {name}?"),), gold)


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {}) as shared:
        yield shared


def run(runner, replies, answers, golds=None, **options):
    judge = Scripted({f"Q {n}?": r for n, r in replies.items()}, answers)
    examples = [ask(n, (golds or {}).get(n, "1")) for n in replies]
    return paraphrase_all(judge, runner, examples, ParaphraseOptions(**options)), judge


def test_what_cannot_be_read_is_asked_for_again_and_then_left_out(runner):
    replies = {"a": ["?", block("A")], "b": [None, "?"], "c": [block("C"), None], "d": [block("q  D?"), block("D")]}
    found, judge = run(runner, replies, {}, check_share=0)
    assert {row["id"]: row["paraphrase"] for row in found.rows} == {"a": "A", "c": "C", "d": "D"}
    assert found.failed == {"b": "no rewrite in the reply"}
    assert [name for name, sample, _ in judge.asked if sample] == ["a/paraphrase", "b/paraphrase", "d/paraphrase"]
    assert {temperature for _, _, temperature in judge.asked} == {0.7}


def test_a_rewrite_to_the_letter_is_none(runner):
    found, _ = run(runner, {"a": [block("q  A?")] * 2}, {}, check_share=0)
    assert found.failed == {"a": "the rewrite is the question to the letter"}
    assert found.rows == []


ANSWERS = {
    "Q a?": r"\boxed{1}", "A": r"\boxed{1}",  # the same
    "Q b?": r"\boxed{1}", "B": r"\boxed{2}",  # another
    "Q c?": r"\boxed{7}", "C": r"\boxed{1}",  # the model cannot answer the original
    "Q d?": r"\boxed{1}", "D": None,  # or says nothing
    "Q e?": r"\boxed{1}", "E": "I cannot tell",
}  # fmt: skip


def test_a_paraphrase_with_another_answer_is_counted_and_left_out(runner):
    replies = {name: [block(name.upper())] for name in "abcde"}
    found, _ = run(runner, replies, ANSWERS, check_share=1.0)
    assert found.checked == {"a": Preserved.YES, "b": Preserved.NO, "c": Preserved.UNKNOWN, "d": Preserved.UNKNOWN,
                             "e": Preserved.NO}  # fmt: skip
    assert [row["id"] for row in found.rows] == ["a", "c", "d"]
    assert found.summary["answer_preserved_share"] == pytest.approx(1 / 3)
    assert found.failed == dict.fromkeys("be", "the paraphrase has another answer")


def test_without_golds_the_two_answers_are_compared_with_each_other(runner):
    replies = {name: [block(name.upper())] for name in "abcd"}
    found, _ = run(runner, replies, ANSWERS, golds=dict.fromkeys("abcd"), check_share=1.0)
    assert found.checked == {"a": Preserved.YES, "b": Preserved.NO, "c": Preserved.NO, "d": Preserved.UNKNOWN}


def test_only_a_share_is_checked(runner):
    replies = {str(i): [block(f"P{i}")] for i in range(40)}
    answers = {f"Q {i}?": r"\boxed{1}" for i in range(40)} | {f"P{i}": r"\boxed{1}" for i in range(40)}
    found, _ = run(runner, replies, answers, check_share=0.1)
    assert list(found.checked) == ["9", "19", "29", "39"]
    assert found.summary["answer_preserved_share"] == 1


# ---- the command -------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Rewrites every question but the first, and answers 1 to everything."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        question = content.rpartition("\n\n")[2]
        text = r"so \boxed{1}" if "Solve" in content else "?" if "first" in question else block(f"Please: {question}")
        reply = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def words(folder, url):
    return ["--out", str(folder / "pairs.jsonl"), "--judge", f"base_url={url}", "--judge", "model=m",
            "--option", "check_share=1.0"]  # fmt: skip


def test_the_command_writes_pairs_and_a_report(tmp_path, url, capsys):
    rows = [{"prompt": f"What is the {n}?", "gold": "1"} for n in ("first", "second", "third")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "defaults: [{model: scratch_tiny}, {objective: grpo}, {hardware: cpu}, _self_]\n"
        "name: mine\ndescription: x\nseed: 0\nverifier: {kind: exact}\nsources: [{kind: rule}]\n"
        f"data: {{train: {{kind: jsonl, path: {tmp_path / 'questions.jsonl'}}}, max_prompt_tokens: 64}}\n"
        "rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_response_tokens: 8}\n"
        "optim: {lr: 1e-4}\ntrain: {steps: 1, max_tokens_per_microbatch: 512}\n"
    )
    out = tmp_path / "pairs.jsonl"
    assert cli.main(["paraphrase", str(mine), *words(tmp_path, url)]) == 0
    assert "answer preserved share: 1.0" in capsys.readouterr().out
    examples = load_examples("jsonl", {"path": str(out), "id_field": "id", "meta_fields": ["paraphrase"]}, key="data")
    pairs = make_pairs(examples, lambda other: True)
    assert [e.question for e in pairs.paraphrases] == ["Please: What is the second?", "Please: What is the third?"]
    report = json.loads((tmp_path / "pairs.jsonl.report.json").read_text())
    assert (report["paraphrases"], report["without"], report["checked"]) == (2, 1, 2)
    assert list(report["left_out"].values()) == ["no rewrite in the reply"]


def test_a_folder_that_does_not_exist_is_said_before_anything_is_asked(tmp_path, url, capsys):
    assert cli.main(["paraphrase", "quickstart", *words(tmp_path / "nowhere", url)]) == 2
    assert "folder does not exist" in capsys.readouterr().err


def test_a_misspelt_option_of_the_judge_is_an_error(tmp_path, url, capsys):
    assert cli.main(["paraphrase", "quickstart", *words(tmp_path, url), "--judge", "modell=m"]) == 2
    assert "modell" in capsys.readouterr().err


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match="check_share"):
        ParaphraseOptions(check_share=2.0)
