"""Joining a cluster that is not there."""

from __future__ import annotations

import socket

import pytest

from cluster.connect import NoClusterError, connect


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_listens_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    refused = pytest.raises(NoClusterError, match=rf"127.0.0.1:{port}: no cluster answers there .*Connection refused")
    with refused, connect():
        pass
