"""Whether the hub can be asked for data sets, found out at once instead of by half a minute of retries."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import datasets
import datasets.config


@contextmanager
def asked_only_in_reach() -> Iterator[None]:
    """Let ``datasets`` look into its own store only while the hub is out of reach."""
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not is_in_reach()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def is_in_reach() -> bool:
    """Whether the hub's name resolves, or a proxy may know it."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(datasets.config.HF_ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
