"""text -> verdict. Rule verifiers, importable without torch and usable inside any trainer.

with Runner("exact", {"marker": "####"}) as runner:
    verdicts = runner.verify([VerifyRequest("... #### 42", gold="42")])
"""

from verifiers.errors import AssayError, BadGold, ConfigError, DataError, ModelError, RunError, VerifierError
from verifiers.runner import Runner
from verifiers.verdict import VERIFIERS, Status, Verdict, Verifier, VerifyRequest

__all__ = ["VERIFIERS", "AssayError", "BadGold", "ConfigError", "DataError", "ModelError", "RunError", "Runner",
           "Status", "Verdict", "Verifier", "VerifierError", "VerifyRequest"]  # fmt: skip
