"""Envelopes, tokens, digests, and what hostile or clumsy devices send."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from services.adapters.onvif import client, codec, soap
from tests.adapters.onvif import fuzz_codec


def test_the_digest_of_the_profiles_formula() -> None:
    """Base64(SHA-1(nonce + created + password)), UsernameToken Profile 1.0; the values are those of ONVIF's
    Application Programmer's Guide, 6.1.1.3."""
    nonce = base64.b64decode("LKqI6G/AikKCQrN0zqZFlg==")
    assert soap.digest("userpassword", nonce, "2010-09-16T07:50:45Z") == "tuOSpGlFlIXsozq4HFNeeGeFLEI="


def test_the_digest_of_rfc_7616() -> None:
    """RFC 7616, 3.9.1, with its cnonce."""
    for algorithm, response in {
        "MD5": "8ca523f5e9506fed4657c9700eebdbec",
        "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    }.items():
        challenge = {
            "realm": "http-auth@example.org",
            "qop": "auth, auth-int",
            "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS",
            "algorithm": algorithm,
        }
        digest = client.Digest("Mufasa", "Circle of Life", challenge)
        digest._client = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
        assert f'response="{response}"' in digest.header("GET", "/dir/index.html")


def test_a_digest_of_the_old_sort() -> None:
    """RFC 2069: without qop there is neither counter nor cnonce."""
    header = client.Digest("u", "p", {"realm": "r", "nonce": "n"}).header("POST", "/x")

    def hashed(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    response = hashed(f"{hashed('u:r:p')}:n:{hashed('POST:/x')}")
    assert f'response="{response}"' in header
    assert "nc=" not in header


def test_of_several_challenges_the_strongest_is_answered() -> None:
    found = client.challenges(
        [
            'Basic realm="x", Digest realm="a", nonce="1", qop="auth"',
            'Digest realm="b", nonce="2", algorithm=SHA-256',
            'Digest realm="c", nonce="3", algorithm=SHA-512-256',
        ]
    )
    assert [said["realm"] for said in found] == ["b", "a"]


@pytest.mark.parametrize(
    ("document", "part"),
    [
        (b"", "no element found"),
        (b"<a>", "no element found"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        (b"<a>" * 60 + b"</a>" * 60, "too deep"),
        (b"<a>" + b"<b/>" * 60_000 + b"</a>", "too large"),
        (b"x" * (soap.LARGEST + 1), "MiB"),
    ],
)
def test_what_is_refused(document: bytes, part: str) -> None:
    with pytest.raises(soap.Unreadable, match=part):
        soap.parse(document)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"<a>front & back</a>", "front & back"),
        (b"<a>x\x01y</a>", "xy"),
        ('<?xml version="1.0" encoding="UTF-8"?><a>Tür</a>'.encode("latin-1"), "T\ufffdr"),
        (b'<?xml version="1.0" encoding="gb2312"?><a>T</a>', "T"),
        ("\ufeff<a>x</a>".encode(), "x"),
        (b"<odd:a>x</odd:a>", "x"),
    ],
)
def test_what_is_mended(document: bytes, text: str) -> None:
    assert soap.parse(document).text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T00:00:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T01:00:00.1234567+01:00", datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)),
        ("0000-00-00T00:00:00Z", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("yesterday", None),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    assert soap.time(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("PT1M30S", 90), ("P1DT1H", 90_000), ("PT0.5S", 0.5), ("1", None)]
)
def test_durations(text: str, expected: float | None) -> None:
    assert soap.seconds(text) == expected


def test_reference_parameters_go_back_as_they_came() -> None:
    """Axis tells pull points apart by one."""
    answer = soap.body(
        soap.parse(
            soap.envelope(
                "<e:CreatePullPointSubscriptionResponse><e:SubscriptionReference>"
                "<a:Address>http://192.0.2.1/s?a=1&amp;b=2</a:Address><a:ReferenceParameters "
                'xmlns:dom0="http://www.axis.com/2009/event"><dom0:SubscriptionId>7 &lt; 8'
                "</dom0:SubscriptionId></a:ReferenceParameters></e:SubscriptionReference></e:CreatePullPointSubscriptionResponse>"
            )
        )
    )
    made = codec.subscription(answer)
    assert made.address == "http://192.0.2.1/s?a=1&b=2"
    assert codec.Subscription.from_text(made.to_text()) == made
    header = soap.parse(
        soap.envelope("", soap.addressed("PullMessages", made.address, "urn:uuid:1", made.reference))
    ).find("Header")
    assert header is not None
    found = header.find("SubscriptionId")
    assert found is not None
    assert (found.space, found.text) == ("http://www.axis.com/2009/event", "7 < 8")
    assert found.attributes == {"IsReferenceParameter": "true"}
    assert header.get("To") == made.address


def test_names_that_are_none_without_their_prefix_are_written_as_names() -> None:
    root = soap.parse(b'<a:1 b:-="x" c:="y"><d:/></a:1>')
    again = soap.parse(root.xml().encode())
    assert again.name == "_1"
    assert again.attributes == {"_-": "x", "_": "y"}
    assert again.children[0].name == "_"


def test_a_fault_says_why() -> None:
    document = soap.envelope(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode>"
        '</s:Code><s:Reason><s:Text xml:lang="en">Sender not authorized</s:Text></s:Reason></s:Fault>'
    )
    with pytest.raises(soap.Fault, match="Sender not authorized") as caught:
        soap.body(soap.parse(document))
    assert caught.value.codes == ("Sender", "NotAuthorized")
    assert caught.value.unauthorized


def test_addresses_that_the_device_tells_are_asked_at_the_host_of_the_site_file() -> None:
    door = client.Door("http://192.0.2.1:8000/onvif/device_service", None, None, "auto", None, True)
    asks = client.Client(door)
    for told, asked in {
        "http://192.0.2.1:8001/events?x=1": "http://192.0.2.1:8001/events?x=1",
        "http://10.0.0.1/events": "http://192.0.2.1:8000/events",
        "http://evil.example:99/onvif/x": "http://192.0.2.1:8000/onvif/x",
        "http://user@192.0.2.1/x": "http://192.0.2.1/x",
        "https://192.0.2.1/x": "http://192.0.2.1:8000/x",
        "": "http://192.0.2.1:8000/",
    }.items():
        assert asks.address(told) == asked
    for told in ("http://[::1", "http://192.0.2.1:x/y", "http://192.0.2.1:99999/"):
        with pytest.raises(soap.Unreadable):
            asks.address(told)


@pytest.mark.parametrize("seed", fuzz_codec.seeds(), ids=lambda seed: "")
def test_the_fuzzers_seeds(seed: bytes) -> None:
    fuzz_codec.fuzz_one(seed)


def test_truth_values_are_not_numbers_of_something() -> None:
    def active(data: dict[str, Any]) -> str:
        return codec.Notification("x", "x", None, {"Data": data}).active

    assert active({"IsMotion": "1"}) == "true"
    assert active({"LogicalState": "inactive"}) == "false"
    assert active({"ObjectId": "1"}) == ""
    assert active({"State": "true", "Other": "false"}) == ""
    assert active({"State": "true", "Count": "0"}) == "true"
    assert active({}) == ""
