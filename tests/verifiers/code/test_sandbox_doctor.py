"""`assay doctor` says which tier this machine has."""

import sys

from trainer import doctor
from verifiers.code.sandbox import Sandbox


def test_doctor_names_the_tier(tier):
    found = doctor.sandbox()
    sandbox = Sandbox(workers=1, packages=())
    sandbox.close()
    assert f"tier {sandbox.tier}:" in found.text
    assert (found.level == "ok") == (sandbox.tier == "namespaces")


def test_doctor_says_why_there_is_no_stronger_tier(tier, monkeypatch):
    monkeypatch.setattr("verifiers.code.walls.find_bubblewrap", lambda: None)
    found = doctor.sandbox()
    assert found.level == "note"
    assert "bubblewrap is not installed" in found.text


def test_doctor_has_no_problem_on_a_system_without_a_sandbox(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    found = doctor.sandbox()
    assert found.level == "note"
    assert "needs Linux" in found.text
