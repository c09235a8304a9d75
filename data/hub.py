"""The Hugging Face hub, when it cannot be reached: say so in seconds instead of retrying for a minute."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

_TIMEOUT_S = 3.0


def use_cache_if_unreachable() -> None:
    """Switch huggingface_hub and datasets to offline mode when the hub does not answer: cached files are then used as
    they are, and a missing one is an error at once. Behind a proxy nothing is probed or changed."""
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE or _behind_proxy() or reachable(hub.ENDPOINT):
        return
    hub.HF_HUB_OFFLINE = True  # read at every request, so this holds from here on
    import datasets.config

    datasets.config.HF_HUB_OFFLINE = True


def _behind_proxy() -> bool:
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))


@cache
def reachable(endpoint: str) -> bool:
    """Whether something listens at the endpoint's address. Asked once a process."""
    url = urlsplit(endpoint)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
