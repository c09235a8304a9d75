"""Plain data on the wire: one JSON text a value, exact built-in types only, decoded under caps.

None, booleans, strings, lists, finite floats and integers below 2**63 stand for themselves. All else is an object with
one key that names the type: i (integer, hex), f (float that is not finite), t (tuple), s (set), z (frozenset), b
(bytes, hex), c (complex), d (dict as pairs); and, only where the caller allows it, o (an object that stays in the
sandbox, by number) and y (a built-in type, by name).

Everything that `decode` reads is hostile. It raises `BadFrame` and nothing else, and takes at most 160 bytes for each
value that `MAX_NODES` allows and 12 for each byte of the frame: 200 MiB for the 4 MiB that a run may write by default.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

MAX_DEPTH = 60
MAX_NODES = 1_000_000
MAX_INTEGER_DIGITS = 100_000  # hexadecimal
MAX_HASHED = 200_000  # keys of dicts and members of sets
# Keys whose hash the sender can aim at: enough of them with one hash, each compared with all others value by value,
# would keep the parent busy for minutes. Their number times the values in them: at most about a second.
MAX_AIMED_COST = 100_000_000
TYPES = {kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, set, frozenset, dict, complex,
                                          type(None), object, range)}  # fmt: skip
_SMALL = 1 << 63
_EXACT = frozenset({bool, str, type(None)})


class BadFrame(ValueError):
    """Not plain data, or more of it than the caps allow."""


class Unsupported(TypeError):
    """A value that is not plain data."""


def encode(value: Any, opaque: Callable[[Any], Any] | None = None) -> str:
    """One line of JSON. `opaque` gives the JSON of a value that is not plain data, or raises.

    Raises `Unsupported` for other types and for data nested deeper than `MAX_DEPTH`. Subclasses of the built-in types
    and numpy values are sent as the plain values they hold, a deque as a list.
    """
    return json.dumps(_encode(value, opaque or _refuse, 0))


def _refuse(value: Any) -> Any:
    raise Unsupported(type(value).__name__)


def _encode(value: Any, opaque: Callable[[Any], Any], depth: int) -> Any:
    kind = type(value)
    if kind in _EXACT:
        return value
    if depth > MAX_DEPTH:
        raise Unsupported(f"data nested deeper than {MAX_DEPTH}")

    def each(items: Any) -> list[Any]:
        return [_encode(item, opaque, depth + 1) for item in items]

    if isinstance(value, int):
        number = value if kind is int else int.__index__(value)
        return number if -_SMALL < number < _SMALL else {"i": hex(number)}
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else {"f": float.__repr__(number)}
    if isinstance(value, list):
        return each(list.__iter__(value))
    if isinstance(value, tuple):
        return {"t": each(tuple.__iter__(value))}
    if isinstance(value, dict):
        return {"d": [each(pair) for pair in dict.items(value)]}
    if isinstance(value, set | frozenset):
        return {"s" if isinstance(value, set) else "z": each(value)}
    return _encode_rare(value, kind, opaque, depth)


def _encode_rare(value: Any, kind: type, opaque: Callable[[Any], Any], depth: int) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if kind is deque:
        return _encode(list(value), opaque, depth)
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if kind is complex:
        return {"c": [_encode(part, opaque, depth) for part in (value.real, value.imag)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        plain = value.tolist()
        if type(plain) is not kind:
            return _encode(plain, opaque, depth + 1)
    return opaque(value)


def decode(frame: bytes, opaque: Callable[[str, Any], Any] | None = None) -> Any:
    """The value of one frame. `opaque` makes the value of an o or y object from its key and content, or raises
    `BadFrame`. Raises `BadFrame` and nothing else."""
    return Decoder(opaque).decode(frame)


class Decoder:
    """Decodes frames; the caps are counted over all of them."""

    def __init__(self, opaque: Callable[[str, Any], Any] | None = None):
        self._opaque = opaque
        self._nodes = self._hashed = self._aimed = self._aimed_values = 0

    def decode(self, frame: bytes) -> Any:
        return self._guarded(frame, lambda raw: self._value(raw, 0))

    def reply(self, frame: bytes) -> tuple[str, Any]:
        """What a call came to: ("v", value), ("x", type that is not plain data) or ("e", exception in words)."""
        return self._guarded(frame, self._reply)

    def _reply(self, raw: Any) -> tuple[str, Any]:
        ((key, content),) = raw.items() if type(raw) is dict and len(raw) == 1 else (("", None),)
        if key == "v":
            return key, self._value(content, 0)
        if key == "x" and type(content) is str:
            return key, content
        if key == "e" and type(content) is list and [type(part) for part in content] == [str, str]:
            return key, content[1]
        raise BadFrame("not a reply")

    def _guarded(self, frame: bytes, read: Callable[[Any], Any]) -> Any:
        # Every value but the first is announced by one of these, so this bounds the memory before it is taken.
        self._nodes += 1 + frame.count(b",") + frame.count(b"[") + frame.count(b"{") + frame.count(b":")
        if self._nodes > MAX_NODES:
            raise BadFrame("too many values")
        try:
            return read(json.loads(frame))
        except BadFrame:
            raise
        # ValueError: not JSON, not UTF-8, too many digits. RecursionError: nested too deep for the JSON parser.
        # TypeError: the wrong shape, or a key that cannot be hashed.
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise BadFrame(type(error).__name__) from None

    def _value(self, raw: Any, depth: int) -> Any:
        if depth > 3 * MAX_DEPTH + 4:  # a dict takes three levels
            raise BadFrame("nested too deep")
        if type(raw) is list:
            return [self._value(item, depth + 1) for item in raw]
        if type(raw) is not dict:
            return raw
        if len(raw) != 1:
            raise BadFrame("an object with other than one key")
        ((key, content),) = raw.items()
        if key in ("o", "y") and self._opaque is not None:
            return self._opaque(key, content)
        reader = _READERS.get(key)
        if reader is None:
            raise BadFrame("an unknown type")
        return reader(self, content, depth + 1)

    def _items(self, content: Any, depth: int) -> list[Any]:
        if type(content) is not list:
            raise BadFrame("not a list")
        return [self._value(item, depth + 1) for item in content]

    def count_hashes(self, keys: Sequence[Any]) -> None:
        """Before they are hashed. Raises `BadFrame` if that could take too long."""
        self._hashed += len(keys)
        aimed = [key for key in keys if not _hash_is_safe(key)]
        self._aimed += len(aimed)
        self._aimed_values += sum(map(_cost_of_comparison, aimed))
        if self._hashed > MAX_HASHED or self._aimed * self._aimed_values > MAX_AIMED_COST:
            raise BadFrame("too many keys")

    def _integer(self, content: Any, depth: int) -> int:
        if type(content) is not str or len(content) > MAX_INTEGER_DIGITS:
            raise BadFrame("not an integer")
        return int(content, 16)

    def _float(self, content: Any, depth: int) -> float:
        if content not in ("nan", "inf", "-inf"):
            raise BadFrame("not a float")
        return float(content)

    def _tuple(self, content: Any, depth: int) -> tuple[Any, ...]:
        return tuple(self._items(content, depth))

    def _set(self, content: Any, depth: int) -> set[Any]:
        items = self._items(content, depth)
        self.count_hashes(items)
        return set(items)

    def _frozenset(self, content: Any, depth: int) -> frozenset[Any]:
        return frozenset(self._set(content, depth))

    def _bytes(self, content: Any, depth: int) -> bytes:
        if type(content) is not str:
            raise BadFrame("not bytes")
        return bytes.fromhex(content)

    def _complex(self, content: Any, depth: int) -> complex:
        real, imaginary = self._items(content, depth)
        if type(real) is not float or type(imaginary) is not float:
            raise BadFrame("not a complex number")
        return complex(real, imaginary)

    def _dict(self, content: Any, depth: int) -> dict[Any, Any]:
        pairs = self._items(content, depth)
        if any(type(pair) is not list or len(pair) != 2 for pair in pairs):
            raise BadFrame("not pairs")
        self.count_hashes([key for key, _ in pairs])
        return dict(pairs)


def _hash_is_safe(key: Any) -> bool:
    """Whether its hash cannot be aimed at (strings and bytes are salted) or hardly collides (small numbers)."""
    kind = type(key)
    return kind in _EXACT or kind is bytes or (kind is int and -_SMALL < key < _SMALL)


def _cost_of_comparison(key: Any) -> int:
    """With one that is equal but for its end; in values of machine size."""
    kind = type(key)
    if kind in (tuple, frozenset):
        return 1 + sum(map(_cost_of_comparison, key))
    if kind in (str, bytes):
        return 1 + len(key) // 64
    return 1 + (key.bit_length() // 64 if kind is int else 0)


_READERS: dict[str, Callable[[Decoder, Any, int], Any]] = {
    "i": Decoder._integer,
    "f": Decoder._float,
    "t": Decoder._tuple,
    "s": Decoder._set,
    "z": Decoder._frozenset,
    "b": Decoder._bytes,
    "c": Decoder._complex,
    "d": Decoder._dict,
}
