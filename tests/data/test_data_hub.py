import socket
import time

import pytest

from data import hub
from trainer import cli


def test_an_endpoint_without_listener_is_unreachable_and_one_with_is_not():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert hub.reachable(f"http://127.0.0.1:{port}")
    assert not hub.reachable(f"http://127.0.0.1:{port}/elsewhere")


def test_checking_a_hub_recipe_without_network_answers_in_seconds(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to retry for a minute."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(hub, "reachable", lambda _: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("data.hub._behind_proxy", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    started = time.monotonic()
    arguments = ["model.path=nobody/no-such-model", f"run.dir={tmp_path}/runs"]
    assert cli.main(["check", "grpo_math", *arguments]) == 2
    assert time.monotonic() - started < 10
    assert "nobody/no-such-model" in capsys.readouterr().err
