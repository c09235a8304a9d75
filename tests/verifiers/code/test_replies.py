"""What the parent reads from the sandbox's processes: the documented fields of exactly their types, else `BadReply`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.code import replies
from verifiers.code.compare import same_value

END = {"ready": True, "note": "x", "stopped": "wall", "status": -9, "cpu_s": 1.5}
READERS = (replies.read_end, replies.read_greeting, replies.read_started, replies.read_step)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*END, "done", "pid", "missing"]) | st.text(), inner)
    ),
    max_leaves=10,
)


def test_what_the_processes_say_is_read():
    assert replies.read_end(json.dumps(END).encode()) == replies.End(**END)
    assert replies.read_greeting(b'{"missing": ["numpy: no"], "landlock": 7}') == (["numpy: no"], 7)
    assert replies.read_started(b'{"pid": 12}') == 12
    assert replies.read_step(b'{"done": ["wrong", "1 != 2"]}') == ("wrong", "1 != 2")


def test_why_a_zygote_was_not_started_is_said():
    with pytest.raises(replies.BadReply, match="no such file"):
        replies.read_started(b'{"error": "no such file"}')


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_hostile_messages_raise_bad_reply_only(message):
    for read in READERS:
        try:
            read(message)
        except replies.BadReply:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {"ready": 1},
        {"note": None},
        {"stopped": "because"},
        {"status": 10**9},
        {"status": True},
        {"cpu_s": "1"},
        {"x": 1},
    ],
    ids=str,
)
def test_an_end_with_anything_else_in_it_is_refused(change):
    with pytest.raises(replies.BadReply):
        replies.read_end(json.dumps({**END, **change}).encode())


@pytest.mark.parametrize(
    "message", [b"[" * 60_000, b"1" * 60_000, b'{"pid": -1}', b'{"done": ["x", ""]}', b" " * 70_000]
)
def test_odd_messages_are_refused(message):
    for read in READERS:
        with pytest.raises(replies.BadReply):
            read(message)


def test_a_float_for_an_expected_integer_beyond_the_floats_is_wrong_and_nothing_worse():
    assert not same_value(1.0, 10**400, 1e-6)
    assert not same_value(10**400, 1.0, 1e-6)
    assert same_value(10**400, 10**400, 1e-6)
