"""Digest and basic by the examples of the standards, and what servers really send."""

from __future__ import annotations

import pytest

from services.adapters.isapi.authentication import Guard, Unsupported, basic, challenge, digest, schemes

# RFC 7616, 3.9.1
_NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
_OFFERS = [
    f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={name}, nonce="{_NONCE}", '
    'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    for name in ("MD5", "SHA-256")
]
_CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


@pytest.mark.parametrize(
    ("offers", "response"),
    [
        (_OFFERS[:1], "8ca523f5e9506fed4657c9700eebdbec"),
        (_OFFERS, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ([", ".join(_OFFERS)], "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
    ids=["md5", "the strongest", "in one header"],
)
def test_the_standards_example(offers: list[str], response: str) -> None:
    said = digest(challenge(offers), "Mufasa", "Circle of Life", "GET", "/dir/index.html", cnonce=_CNONCE)
    assert dict(schemes([said]))["digest"]["response"] == response


def test_without_qop_as_old_cameras_have_it() -> None:
    """RFC 2069, with the correction of its erratum 749."""
    asked = challenge(['Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'])
    said = digest(asked, "Mufasa", "CircleOfLife", "GET", "/dir/index.html")
    assert dict(schemes([said]))["digest"]["response"] == "1949323746fe6a43ef61f9606e7febea"
    assert "cnonce" not in said


def test_basic() -> None:
    """RFC 7617, 2."""
    assert basic("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert basic("test", "123\u00a3") == "Basic dGVzdDoxMjPCow=="


@pytest.mark.parametrize(
    ("offers", "said"),
    [
        ([], "offers nothing"),
        (["Basic realm=x", "Negotiate"], "offers basic, negotiate"),
        (['Digest realm="x", nonce="y", algorithm=SHA-3'], "offers digest"),
        (['Digest realm="x", nonce="y", qop="auth-int"'], "offers digest"),
        (['Digest realm="x"'], "offers digest"),
    ],
)
def test_what_cannot_be_answered(offers: list[str], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        challenge(offers)


@pytest.mark.parametrize("algorithm", ["MD5", "MD5-sess", "SHA-256", "SHA-256-sess", "SHA-512-256"])
def test_the_guard(algorithm: str) -> None:
    guard = Guard("a realm", 'us"er', "pass: ü", algorithm=algorithm)

    def said(user: str = 'us"er', password: str = "pass: ü", target: str = "/a?b=[c]") -> str:  # noqa: S107
        return digest(challenge([guard.challenge()]), user, password, "GET", target)

    right = said()
    assert guard.admits("GET", "/a?b=[c]", right)
    assert not guard.admits("GET", "/a?b=[c]", right), "a second time"
    assert not guard.admits("POST", "/a?b=[c]", said())
    assert not guard.admits("GET", "/other", said())
    assert not guard.admits("GET", "/a?b=[c]", said(password="wrong"))
    assert not guard.admits("GET", "/a?b=[c]", said(user="other"))
    assert not guard.admits("GET", "/a?b=[c]", "Basic x")
    assert not guard.admits("GET", "/a?b=[c]", "")
    strange = digest(
        challenge(['Digest realm="a realm", nonce="x", qop="auth"']), 'us"er', "pass: ü", "GET", "/"
    )
    assert not guard.admits("GET", "/", strange), "a nonce that it did not give"
