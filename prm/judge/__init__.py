"""Judges: language models (or oracles) that are asked about responses. See docs/judge.md."""

from prm.judge.outcome import JudgeSource

__all__ = ["JudgeSource"]
