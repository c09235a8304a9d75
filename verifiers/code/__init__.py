"""Kind ``code``: programs written by a model, run in a sandbox against tests. See docs/sandbox.md."""

from verifiers.code.verifier import CodeVerifier

__all__ = ["CodeVerifier"]
