from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.camera_token import TokenError, allowed_url, decode

# The form of VXG's public samples; the values are made up.
SAMPLE: dict[str, Any] = {
    "camid": 248527,
    "cmngrid": 248964,
    "access": "all",
    "token": "share.eyJhbGciOiJI",
    "api": "web.example.com",
    "cam": "cam.example.com",
}


def token_of(**changes: Any) -> str:
    said = {key: value for key, value in {**SAMPLE, **changes}.items() if value is not ...}
    return base64.b64encode(json.dumps(said).encode()).decode()


def test_what_a_token_says() -> None:
    token = decode(SecretStr(token_of() + "\n"))
    assert (token.camid, token.group, token.access, token.host) == (248527, 248964, "all", "web.example.com")
    assert token.base_url() == "https://web.example.com"
    assert "eyJhbGciOiJI" not in repr(token)


def test_padding_may_be_missing() -> None:
    assert decode(token_of(camid=1).rstrip("=")).camid == 1


@pytest.mark.parametrize(
    ("changes", "insecure", "url"),
    [
        ({}, False, "https://web.example.com"),
        ({"api_sp": 443}, False, "https://web.example.com"),
        ({"api_sp": 8443}, False, "https://web.example.com:8443"),
        ({"api_sp": "8443", "path": "/vms/"}, False, "https://web.example.com:8443/vms"),
        ({"api_p": 8080}, False, "https://web.example.com"),
        ({"api_p": 8080}, True, "http://web.example.com:8080"),
        ({"api_p": 8080, "api_sp": 8443}, True, "https://web.example.com:8443"),
        ({"api": "127.0.0.1", "api_p": 8080}, False, "http://127.0.0.1:8080"),
        ({"api": "localhost", "api_p": 8080}, False, "http://localhost:8080"),
        ({"api": "[::1]", "api_p": 8080}, False, "http://[::1]:8080"),
        ({"api": "127.0.0.1"}, False, "https://127.0.0.1"),
        ({"api_p": "", "path": None}, False, "https://web.example.com"),
    ],
)
def test_addresses(changes: dict[str, Any], insecure: bool, url: str) -> None:
    assert decode(token_of(**changes)).base_url(insecure=insecure) == url


def test_an_override_wins_and_is_held_to_the_same_rule() -> None:
    token = decode(token_of())
    assert token.base_url("https://vms.example.com:8443/x/") == "https://vms.example.com:8443/x"
    assert token.base_url("http://127.0.0.1:8080") == "http://127.0.0.1:8080"
    assert token.base_url("http://vms:8080", insecure=True) == "http://vms:8080"
    with pytest.raises(TokenError, match="in clear"):
        token.base_url("http://vms:8080")
    with pytest.raises(TokenError, match="in clear"):
        allowed_url("http://127.0.0.1.example.com")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tvm-12345", "licence key"),
        ("", "no JSON"),
        ("Acc " + token_of(), "begins with `Acc `"),
        ("LKey abc", "begins with `LKey `"),
        (base64.b64encode(b"not json").decode(), "no JSON"),
        (base64.b64encode(b"\xff\xfe").decode(), "no JSON"),
        (base64.b64encode(b"[" * 100_000).decode(), "no JSON"),
        (base64.b64encode(b"[1]").decode(), "no object"),
        (token_of(camid=...), "group of cameras"),
        (token_of(camid=None), "group of cameras"),
        (token_of(camid=..., cmngrid=...), "names no camera"),
        (token_of(camid=True), "`camid`"),
        (token_of(camid=0), "`camid`"),
        (token_of(camid=""), "`camid`"),
        (token_of(camid="1/../2"), "`camid`"),
        (token_of(camid=2**70), "`camid`"),
        (token_of(token=...), "no `token`"),
        (token_of(token=7), "no `token`"),
        (token_of(api=...), "no usable host"),
        (token_of(api="a b"), "no usable host"),
        (token_of(api="evil.com/x"), "no usable host"),
        (token_of(api="u@evil.com"), "no usable host"),
        (token_of(api="[::zz]"), "no usable host"),
        (token_of(api_sp=70000), "`api_sp`"),
        (token_of(api_p="x"), "`api_p`"),
        (token_of(path="/../x"), "`path`"),
        (token_of(path="x"), "`path`"),
        (token_of(path="/x?y"), "`path`"),
        (token_of(access="watch"), "access `watch`"),
        (token_of(access=...), "access `unknown`"),
        (token_of(access="a\x1b[31m"), "access `unknown`"),
    ],
)
def test_what_is_wrong_is_said_without_the_token(text: str, part: str) -> None:
    with pytest.raises(TokenError) as caught:
        decode(text)
    assert part in str(caught.value)
    assert caught.value.remedy
    assert "share" not in str(caught.value)


def test_watching_is_enough_for_reading() -> None:
    token = decode(token_of(access="watch"), writes=False)
    assert not token.writable


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda data: base64.b64encode(data).decode()))
def test_anything_else_is_a_token_error(text: str) -> None:
    with pytest.raises(TokenError):
        decode(text)


VALUE = st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from([*SAMPLE, "api_p", "api_sp", "path"]), VALUE))
def test_odd_fields_are_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        token = decode(token_of(**changes))
    except TokenError:
        return
    assert token.base_url().startswith("https://")
    assert token.camid > 0
