"""`Example`: one question with its gold answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn. role: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """id: unique within a dataset. prompt: chat turns, the last one the user's. gold: whatever the verifier compares
    with (plain JSON data). solution: a demonstration, if the source has one (used by warm start only). meta: free JSON
    data that the verifier and the report may read."""

    id: str
    prompt: tuple[Message, ...]
    gold: Any
    solution: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        return self.prompt[-1].content

    def content_key(self) -> str:
        return content_key(self.prompt)


def content_key(prompt: Sequence[Message]) -> str:
    """Hash of a prompt, case and white space folded: two prompts with the same key ask the same thing."""
    text = json.dumps([[m.role, " ".join(m.content.lower().split())] for m in prompt])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
