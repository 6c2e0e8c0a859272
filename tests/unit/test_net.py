"""Addresses as people write them."""

from __future__ import annotations

import pytest

from penstock.coordinator.client import addresses_of
from penstock.errors import ConfigError
from penstock.net import join_address, split_address

_NONE = ["", "localhost", "10.0.0.2", ":1", "host:", "host:x", "host:70000", "::1:1", "[]:1", f"{'a' * 64}:1", "a..b:1"]


@pytest.mark.parametrize(("text", "parts"), [("[::1]:50051", ("::1", 50051)), ("a.b:0", ("a.b", 0))])
def test_an_address_is_a_host_and_a_port(text, parts):
    assert split_address(text) == parts
    assert join_address(*parts) == text


@pytest.mark.parametrize("text", _NONE)
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match="--connect .* isn't host:port"):
        split_address(text, name="--connect")


@pytest.mark.parametrize("text", [*_NONE, "host:0", "ftp://host:1", "http://host:1/path", "host:1,", "http://::1:1"])
def test_what_is_no_address_of_a_coordinator(text):
    with pytest.raises(ConfigError, match="give http://host:port"):
        addresses_of(text)
