"""Schemes as data: what signs, what verifies, what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.adapters.webhook.authenticity import MALFORMED, MISSING, STALE, WRONG, check, proof
from services.adapters.webhook.config import Hmac, Scheme
from services.adapters.webhook.server import Request

NOW = 1_767_268_800
SCHEMES: TypeAdapter[Any] = TypeAdapter(Scheme)


def hmac_scheme(**said: Any) -> Hmac:
    return Hmac.model_validate({"scheme": "hmac", "header": "X-Sig", **said})


def request(body: bytes = b"", headers: dict[str, str] | None = None, **said: Any) -> Request:
    raw = {name.lower().encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
    return Request("192.0.2.1", headers=raw, body=body, **said)


@given(
    body=st.binary(max_size=200),
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    algorithm=st.sampled_from(["sha1", "sha256", "sha384", "sha512"]),
    encoding=st.sampled_from(["hex", "base64"]),
    form=st.sampled_from(
        [
            ("{signature}", "{body}"),
            ("sha256={signature}", "{url}{body}"),
            ("{timestamp}|{signature}", "{body}|{timestamp}"),
            ("t={timestamp},v1={signature}", "{timestamp}.{body}"),
            ("v1={signature},t={timestamp}", "v0:{timestamp}:{url}:{body}"),
        ]
    ),
    other=st.binary(max_size=200),
)
def test_what_is_signed_verifies_and_nothing_else(
    *, body: bytes, key: str, algorithm: str, encoding: str, form: tuple[str, str], other: bytes
) -> None:
    scheme = hmac_scheme(algorithm=algorithm, encoding=encoding, format=form[0], signed=form[1])
    verify = check(scheme, {"signing_secret": key}, public_url="https://x/y", now=lambda: NOW)
    headers = proof(scheme, key, body, str(NOW), url="https://x/y")
    assert verify(request(body, headers)) is None
    if other != body:
        assert verify(request(other, headers)) == WRONG
    forged = check(scheme, {"signing_secret": key + "x"}, public_url="https://x/y", now=lambda: NOW)
    assert forged(request(body, headers)) == WRONG


@given(st.text(max_size=300), st.binary(max_size=50))
def test_any_header_is_survived(text: str, body: bytes) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    for form, signed in (
        ("{signature}", "{body}"),
        ("{timestamp}|{signature}", "{body}|{timestamp}"),
        ("t={timestamp},v1={signature}", "{timestamp}.{body}"),
    ):
        verify = check(hmac_scheme(format=form, signed=signed), {"signing_secret": "k"}, now=lambda: NOW)
        assert verify(Request("x", headers={b"x-sig": raw}, body=body)) in (MISSING, MALFORMED, WRONG)
    for said in (
        {"scheme": "bearer"},
        {"scheme": "basic"},
        {"scheme": "digest"},
        {"scheme": "token", "query": "k"},
    ):
        credentials = {"token": "t0k3n", "username": "u", "password": "p"}
        verify_other = check(SCHEMES.validate_python(said), credentials, now=lambda: NOW)
        for prefix in (b"", b"Bearer ", b"Basic ", b"Digest "):
            headers = {b"authorization": prefix + raw}
            assert verify_other(Request("x", headers=headers, query=raw)) in (MISSING, MALFORMED, WRONG)


def test_forms_of_a_header() -> None:
    scheme = hmac_scheme(format="t={timestamp},v1={signature}", signed="{timestamp}.{body}")
    verify = check(scheme, {"signing_secret": "k"}, now=lambda: NOW)
    right = hmac.new(b"k", f"{NOW}.".encode() + b"b", hashlib.sha256).hexdigest()
    for text, want in (
        (f"t={NOW},v1={right}", None),
        (f"v1={right}, t={NOW}", None),
        (f"t={NOW},v0=abc,v1={right.upper()}", None),
        (f"t={NOW},v1={'0' * 64},v1={right}", None),
        (f"t={NOW},v1={right},t={NOW + 1}", MALFORMED),
        (f"t={NOW},v1={right[:-2]}", MALFORMED),
        (f"t={NOW},v1=", MALFORMED),
        (f"v1={right}", MALFORMED),
        (f"t=soon,v1={right}", MALFORMED),
        (f"t=-5,v1={right}", MALFORMED),
        (f"t={NOW}," + ",".join(["v1=" + "0" * 64] * 8) + f",v1={right}", WRONG),
        (f"t={NOW},v1={right}" + "," * 5000, MALFORMED),
    ):
        assert verify(request(b"b", {"X-Sig": text})) == want, text


def test_the_replay_window() -> None:
    scheme = hmac_scheme(format="{timestamp}|{signature}", signed="{body}|{timestamp}", window="5m")

    def at(stamp: int, window: float | None = None) -> str | None:
        verify = check(scheme, {"signing_secret": "k"}, window=window, now=lambda: NOW)
        return verify(request(b"b", proof(scheme, "k", b"b", str(stamp))))

    assert at(NOW - 300) is None
    assert at(NOW + 300) is None
    assert at(NOW - 301) == STALE
    assert at(NOW + 301) == STALE
    assert at(NOW - 301, window=3600) is None
    forged = check(scheme, {"signing_secret": "other"}, now=lambda: NOW)
    assert forged(request(b"b", proof(scheme, "k", b"b", str(NOW - 9999)))) == WRONG


def test_signatures_of_a_standard_webhook() -> None:
    """Several, with a version before each, separated by blanks; the key in base64."""
    key = base64.b64encode(b"0123456789").decode()
    scheme = hmac_scheme(
        header="webhook-signature", key="base64", encoding="base64", separator=" ", format="v1,{signature}",
        signed="{id}.{timestamp}.{body}", id_header="webhook-id", timestamp_header="webhook-timestamp",
    )  # fmt: skip
    verify = check(scheme, {"signing_secret": key}, now=lambda: NOW)
    message = f"m1.{NOW}.".encode() + b"b"
    right = base64.b64encode(hmac.digest(b"0123456789", message, "sha256")).decode()
    headers = {
        "webhook-id": "m1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": f"v1,AAAA v2,x v1,{right}",
    }
    assert verify(request(b"b", headers)) is None
    assert verify(request(b"b", {**headers, "webhook-id": "m2"})) == WRONG


def test_times_in_other_units() -> None:
    for unit, stamp in (("milliseconds", f"{NOW}123"), ("iso8601", "2026-01-01T12:00:00Z")):
        scheme = hmac_scheme(signed="{timestamp}{body}", timestamp_header="X-Time", timestamp=unit, window=1)
        verify = check(scheme, {"signing_secret": "k"}, now=lambda: NOW)
        assert verify(request(b"b", proof(scheme, "k", b"b", stamp))) is None
        assert verify(request(b"b", {**proof(scheme, "k", b"b", stamp), "X-Time": "x"})) == MALFORMED


@pytest.mark.parametrize(
    "said",
    [
        {"signed": "{timestamp}"},
        {"signed": "{timestamp}{body}"},
        {"format": "{timestamp}|{signature}"},
        {"format": "sha256="},
        {"signed": "{body}{secret}"},
        {"signed": "{body}{id}"},
        {"signed": "{body}{"},
        {"algorithm": "md5"},
        {"header": "a b"},
    ],
)
def test_schemes_that_prove_nothing_are_mistakes(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        hmac_scheme(**said)


def test_bad_keys_are_told_without_telling_them() -> None:
    for key, secret in (("hex", "xyz-not-hex"), ("base64", "???")):
        with pytest.raises(ValueError, match="signing_secret is not") as caught:
            check(hmac_scheme(key=key), {"signing_secret": secret})
        assert secret not in str(caught.value)
    with pytest.raises(ValueError, match="empty"):
        check(hmac_scheme(), {"signing_secret": "\n"})


def digest_answer(
    challenge: str, password: str, uri: str = "/hooks/cam", nc: str = "00000001", qop: str = "auth"
) -> str:
    nonce = challenge.partition('nonce="')[2].partition('"')[0]

    def h(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    response = h(f"{h(f'bob:tocsin:{password}')}:{nonce}:{nc}:c0:{qop}:{h(f'POST:{uri}')}")
    return (
        f'Digest username="bob", realm="tocsin", nonce="{nonce}", uri="{uri}", qop={qop}, nc={nc}, '
        f'cnonce="c0", response="{response}", algorithm=MD5'
    )


def test_digest_is_used_once_and_grows_old() -> None:
    clock = [float(NOW)]
    scheme = SCHEMES.validate_python({"scheme": "digest"})
    verify = check(scheme, {"username": "bob", "password": "pw"}, now=lambda: clock[0])

    def ask(text: str) -> str | None:
        return verify(request(headers={"Authorization": text}, method=b"POST", path=b"/hooks/cam"))

    challenge = next(value.decode() for _, value in verify.challenge() if b"MD5" in value)
    answer = digest_answer(challenge, "pw")
    assert ask(answer) is None
    assert ask(answer) == STALE  # a replay
    assert ask(digest_answer(challenge, "pw", nc="00000002")) is None
    assert ask(digest_answer(challenge, "no", nc="00000003")) == WRONG
    assert ask(digest_answer(challenge, "pw", uri="/other", nc="00000003")) == MALFORMED
    assert ask(digest_answer(challenge, "pw", qop="auth-int", nc="00000003")) == MALFORMED
    made_up = digest_answer('nonce="6956d2c0.00000000000000000000000000000000"', "pw")
    assert ask(made_up) == STALE
    clock[0] += 301
    assert ask(digest_answer(challenge, "pw", nc="00000004")) == STALE


def test_no_two_handshakes_share_a_digest_nonce() -> None:
    """Every client counts from one: two that begin within one second must not seem to be one."""
    verify = check(
        SCHEMES.validate_python({"scheme": "digest"}), {"username": "bob", "password": "pw"}, now=lambda: NOW
    )

    def ask(text: str) -> str | None:
        return verify(request(headers={"Authorization": text}, method=b"POST", path=b"/hooks/cam"))

    challenges = [verify.challenge()[1][1].decode() for _ in range(4)]
    assert [ask(digest_answer(challenge, "pw")) for challenge in challenges] == [None] * 4
    assert [ask(digest_answer(challenge, "pw")) for challenge in challenges] == [STALE] * 4
    again = verify.challenge(stale=True)[1][1].decode()
    assert again.endswith(", stale=true")
    assert ask(digest_answer(again, "pw")) is None


def test_digest_forgets_uses_without_taking_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.adapters.webhook.authenticity._Digest._KEPT", 3)
    verify = check(
        SCHEMES.validate_python({"scheme": "digest"}), {"username": "bob", "password": "pw"}, now=lambda: NOW
    )

    def ask(text: str) -> str | None:
        return verify(request(headers={"Authorization": text}, method=b"POST", path=b"/hooks/cam"))

    answers = [digest_answer(verify.challenge()[1][1].decode(), "pw") for _ in range(6)]
    assert [ask(answer) for answer in answers[:5]] == [None] * 5
    assert [ask(answer) for answer in answers[:5]] == [STALE] * 5
    assert ask(answers[5]) is None
