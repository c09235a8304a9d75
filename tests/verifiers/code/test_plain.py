"""The wire format: what comes back is what was sent, and nothing a hostile sender writes raises or blows up."""

import contextlib
import itertools
import json
import math
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.code.compare import same_output
from verifiers.code.inside import plain

PLAIN_KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
PLAIN = st.recursive(
    st.one_of(PLAIN_KEYS, st.complex_numbers(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(PLAIN_KEYS, inner),
        st.sets(PLAIN_KEYS),
        st.frozensets(PLAIN_KEYS),
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*"iftszbcdoyvex", ""]) | st.text(), inner),
    max_leaves=20,
)


def types_of(value):
    if isinstance(value, dict):
        return (dict, [(types_of(k), types_of(v)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), [types_of(item) for item in value])
    return type(value)


@given(PLAIN)
def test_plain_data_comes_back_equal_and_of_the_same_types(value):
    back = plain.decode(plain.encode(value).encode())
    assert back == value
    assert types_of(back) == types_of(value)


ODD = [math.nan, math.inf, -math.inf, -0.0, 1 << 63, -(1 << 63), 10**5000, "\ud800", 1e-320]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_come_back(value):
    assert repr_of(plain.decode(plain.encode(value).encode())) == repr_of(value)


def repr_of(value):
    return hex(value) if isinstance(value, int) else repr(value)


@given(st.one_of(st.binary(), JSON.map(lambda value: json.dumps(value).encode())))
def test_hostile_frames_raise_bad_frame_only(frame):
    for read in (plain.decode, plain.Decoder().reply):
        try:
            read(frame)
        except plain.BadFrame:
            continue


@pytest.mark.parametrize(
    "frame",
    [
        b"[" * 1_000_000,
        b'{"t": ' * 5_000 + b"1" + b"}" * 5_000,
        b'{"t":[' * 400 + b"]}" * 400,
        b"[" + b"[]," * 1_400_000 + b"[]]",
        b'{"i": "' + b"f" * 200_000 + b'"}',
        b"1" * 100_000,
        b'{"s": [[1]]}',
        b'{"d": [[1]]}',
        b'{"d": {"a": 1}}',
        b'{"c": [1, 2]}',
        b'{"c": [1.0]}',
        b'{"f": "1e9999"}',
        b'{"f": 3}',
        b'{"b": "zz"}',
        b'{"b": 3}',
        b'{"o": 3}',
        b'{"y": "int"}',
        b'{"v": 1, "i": "0x1"}',
        b'{"__class__": "x"}',
        b"\xff\xfe",
        b"",
        b"nul",
    ],
    ids=lambda frame: repr(frame[:20]),
)
def test_malformed_frames_are_refused_quickly_and_in_little_memory(frame):
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(plain.BadFrame):
        plain.decode(frame)
    seconds, (_, peak) = time.monotonic() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 150 * 2**20


@pytest.mark.parametrize(
    ("piece", "read"),
    [
        (b'{"s":[]},', plain.decode),
        (b'{"z":[0]},', plain.decode),
        (b"[0],", plain.decode),
        ('"€",'.encode(), plain.decode),
        ("ā\n".encode(), lambda frame: same_output(frame.decode(), "1", 0)),
    ],
    ids=["sets", "frozensets", "lists", "strings", "lines"],
)
def test_what_takes_most_memory_stays_below_the_documented_cap(piece, read):
    values = sum(piece.count(mark) for mark in (b",", b"[", b"{", b":"))
    count = min((4 << 20) // len(piece) - 1, plain.MAX_NODES // values - 1 if values else 1 << 30)
    frame = piece * count if values == 0 else b"[" + piece * count + b"0]"
    tracemalloc.start()
    with contextlib.suppress(plain.BadFrame):
        read(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 40 * 2**20 < peak < 200 * 2**20


def test_keys_made_to_collide_are_refused_before_they_are_hashed():
    modulus = (1 << 61) - 1  # the hash of an integer is its remainder
    items = [{"i": hex(modulus * (1 << 61) * k)} for k in range(1, 20_000)]
    started = time.monotonic()
    with pytest.raises(plain.BadFrame, match="too many keys"):
        plain.decode(json.dumps({"s": items}).encode())
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("key", ["t", "z"])
def test_a_few_long_keys_made_to_collide_are_refused_as_well(key):
    # -1 and -2 have one hash, so all these tuples have; each comparison runs to the tuples' ends.
    ends = itertools.islice(itertools.product((-1, -2), repeat=14), 4_900)
    items = [{"t": [-1] * 180 + list(end)} for end in ends]
    frame = json.dumps({"s": items} if key == "t" else {"s": [{"z": [item]} for item in items]}).encode()
    started = time.process_time()
    with pytest.raises(plain.BadFrame, match="too many keys"):
        plain.decode(frame)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("value", [{(i, -i, str(i)) for i in range(5_000)}, {i / 7: i for i in range(10_000)}])
def test_large_sets_and_dicts_as_programs_return_them_come_back(value):
    assert plain.decode(plain.encode(value).encode()) == value


def test_many_frames_share_one_budget():
    decoder = plain.Decoder()
    frame = json.dumps([0] * 300_000).encode()
    for _ in range(3):
        decoder.reply(b'{"v": ' + frame + b"}")
    with pytest.raises(plain.BadFrame):
        decoder.reply(b'{"v": ' + frame + b"}")


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__

    def __index__(self):
        return 42


class Impostor:
    def __repr__(self):
        return "42"


def test_a_subclass_is_sent_as_the_value_it_holds_and_nothing_else_by_its_looks():
    assert plain.encode(Liar(7)) == "7"
    for value in (Impostor(), lambda: 1, iter([]), range(3), object, Ellipsis):
        with pytest.raises(plain.Unsupported):
            plain.encode(value)


def test_data_that_holds_itself_is_not_sent():
    loop: list = []
    loop.append(loop)
    with pytest.raises(plain.Unsupported, match="nested"):
        plain.encode(loop)
