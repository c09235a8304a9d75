"""text -> verdict. Rule verifiers, importable without torch and usable inside any trainer."""

from verifiers.errors import AssayError, ConfigError, DataError, ModelError, RunError, VerifierError
from verifiers.verdict import VERIFIERS, Status, Verdict, Verifier, VerifyRequest

__all__ = ["VERIFIERS", "AssayError", "ConfigError", "DataError", "ModelError", "RunError", "Status", "Verdict", "Verifier",
           "VerifierError", "VerifyRequest"]  # fmt: skip
