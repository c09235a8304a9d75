"""Tokens do not leave: what is searched for, where, and what is said."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.export.secrets import known_secrets, refuse_secrets
from verifiers.errors import RunError

SHAPES = {
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"[:34]: "Hugging Face",
    "ghp_" + "a1B2" * 9: "GitHub",
    "glpat-" + "a1B2c3D4" * 3: "GitLab",
    "sk-proj-" + "a1B2c3D4" * 6: "API key",
    "AKIA" + "ABCDEFGH12345678": "AWS",
    "AIza" + "a1B2c3D" * 5: "Google",
    "xoxb-" + "1234567890-abc": "Slack",
    "-----BEGIN RSA PRIVATE KEY-----": "private key",
    "https://me:pa55word@host/x": "password in an address",
    'api_key: "0123456789abcdef0123"': "assigned",
    "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567": "assigned",
    "Authorization: Bearer abcdef0123456789": "assigned",
}


@pytest.mark.parametrize(("secret", "kind"), SHAPES.items())
def test_the_shapes_of_well_known_tokens_are_found_with_their_line(tmp_path, secret, kind):
    (tmp_path / "README.md").write_text(f"one\ntwo {secret}\nthree\n")
    with pytest.raises(RunError) as error:
        refuse_secrets(tmp_path, {})
    assert "README.md: line 2" in str(error.value)
    assert kind in str(error.value)
    assert secret not in str(error.value)


def test_ordinary_records_hold_no_secret(tmp_path):
    text = """max_response_tokens: 1024\npad_token: '<|endoftext|>'\ntokenizer: assets:char_tokenizer
    tokens_generated: 123456789012345678\napi_key_variable: OPENAI_API_KEY\nlogprob_chunk_tokens: 4096
    commit 4afafb940354b44e20a6a415a7e1d47698ddf1cb\nhttps://huggingface.co/org/name\n"""
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "assay").mkdir()
    (tmp_path / "assay" / "export.json").write_text('{"sha256": "' + "0a1b" * 16 + '"}')
    assert refuse_secrets(tmp_path, {}) == 2


def test_the_values_of_variables_that_hold_secrets_are_searched_for(tmp_path):
    environment = {"MY_SERVICE_TOKEN": "correct horse", "DB_PASSWORD": "battery staple", "HOME": "/home/me",
                   "EMPTY_TOKEN": "", "TOKENIZERS_PARALLELISM": "disabled", "TOKEN_PATH": str(tmp_path)}  # fmt: skip
    secrets = known_secrets(environment)
    assert {"correct horse", "battery staple"} <= set(secrets.values())
    assert not {"", "disabled", "/home/me", str(tmp_path)} & set(secrets.values())
    (tmp_path / "tokenizer.json").write_text("... battery staple ...")
    with pytest.raises(RunError, match="the variable DB_PASSWORD"):
        refuse_secrets(tmp_path, secrets)


def test_the_token_of_the_store_is_searched_for(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text("a token of no known shape")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert known_secrets({}) == {"the token of huggingface_hub's store": "a token of no known shape"}


@settings(max_examples=25)
@given(before=st.integers(0, 2_200_000), secret=st.text("abc0123456789", min_size=8, max_size=40))
def test_a_secret_anywhere_in_a_weights_file_is_found(tmp_path_factory, before, secret):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "model.safetensors").write_bytes(b"\0" * before + secret.encode() + b"\0" * 100)
    with pytest.raises(RunError, match="the file holds"):
        refuse_secrets(folder, {"it": secret})


def test_a_token_on_the_command_line_of_the_run_stops_the_export(run, export, hub, tmp_path):
    path = run / "resolved.yaml"
    secret = "hf_" + "leaked0by0mistake" * 2
    values = yaml.safe_load(path.read_text())
    values["environment"]["command"].append(f"+token={secret}")
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RunError, match="looks like a secret") as error:
        export(run, "--to", "org/small")
    assert "README.md" in str(error.value)
    assert "assay/resolved.yaml" in str(error.value)
    assert secret not in str(error.value)
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
