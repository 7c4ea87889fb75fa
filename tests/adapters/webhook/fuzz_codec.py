"""Throws mutated bodies and proofs at the receiver's parsers: `python fuzz_codec.py --seconds N`.

Bodies go through every profile as far as its reports, headers of proof through every scheme.
Ends with 1 and the input at the first exception that is not the parsers' own way of refusing.
Inputs are mutations of the golden cases.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from services.adapters.webhook import codec  # noqa: E402
from services.adapters.webhook.authenticity import check  # noqa: E402
from services.adapters.webhook.config import Scheme, profile  # noqa: E402
from services.adapters.webhook.server import Request  # noqa: E402
from shared import dialect  # noqa: E402
from shared.events import SensorType  # noqa: E402

_TYPES = (
    b"application/json", b"application/xml", b"application/x-www-form-urlencoded", b"",
    b"multipart/form-data; boundary=b", b'multipart/mixed; boundary="MIME_boundary"', b"multipart/form-data",
)  # fmt: skip
_CREDENTIALS = dict.fromkeys(
    (
        "signing_secret",
        "token",
        "bearer_token",
        "key",
        "username",
        "password",
        "basic_username",
        "basic_password",
    ),
    "not-to-be-guessed-0f8a",
)


_ODD = (b"\0", b'"', b"{", b"[" * 200, b"9" * 400, b"\r\n", b"<a>", b"\xff", b"null", b"\xf0\x9f\x94\x94")


class _Memory(dict[str, str]):
    def recall(self, key: str) -> str | None:
        return self.get(key)


class Target:
    """All parsers of the room behind one function."""

    def __init__(self) -> None:
        self.readers: list[tuple[Any, dialect.Reader]] = []
        checks = []
        for name in dialect.names("services.adapters.webhook"):
            language = profile(name)
            point = dialect.Point("s", SensorType.MOTION, dict.fromkeys(language.profile.sensors, "1"))
            self.readers.append((language.profile, dialect.Reader(language, device="d", points=[point])))
            checks += [
                check(scheme, _CREDENTIALS, public_url="https://x/")
                for scheme in language.profile.authenticity
            ]
        more: list[dict[str, str]] = [
            {"scheme": "digest"},
            {
                "scheme": "hmac",
                "header": "a",
                "format": "{timestamp}|{signature}",
                "signed": "{timestamp}{body}",
            },
        ]
        checks += [check(TypeAdapter[Any](Scheme).validate_python(said), _CREDENTIALS) for said in more]
        self.checks = checks
        names = {"authorization", "signature", "verkada-signature", "x-signature", "x-tocsin-signature", "a"}
        names |= {"x-clover-auth", "x-shopify-hmac-sha256", "x-square-hmacsha256-signature"}
        self.headers = [name.encode() for name in sorted(names)]

    def __call__(self, data: bytes) -> None:
        chosen = data[0] if data else 0
        said, reader = self.readers[chosen % len(self.readers)]
        asked = said.requests[(chosen // len(self.readers)) % len(said.requests)]
        proof, _, body = data[1:].partition(b"\n")
        headers = dict.fromkeys(self.headers, proof)
        headers[b"content-type"] = _TYPES[len(body) % len(_TYPES)]
        headers[b"x-shopify-topic"] = b"orders/create"
        query = b"table=" + (b"rtlog", b"ATTLOG", proof)[len(proof) % 3]
        request = Request("192.0.2.1", None, b"POST", b"/hooks/x", query, headers, body)
        for each in self.checks:
            assert each(request) is not None, "a proof was accepted"
        codec.is_challenge(body, "challenge", False)
        codec.query(proof)
        captures = codec.Captures(headers, request.query, "/cdata")
        try:
            for tree in codec.messages(said, asked, request):
                result = reader.read(dialect.Message(tree, captures), _Memory())
                for report in result.reports:
                    json.dumps([dict(report.details), dict(report.native), report.vendor_id, report.running])
        except dialect.Unreadable:
            pass


def seeds() -> list[bytes]:
    """The bodies of the golden cases, each before its profile's byte and a header of proof."""
    names = dialect.names("services.adapters.webhook")
    found = []
    for path in sorted((HERE / "golden").glob("*.yaml")):
        case = yaml.safe_load(path.read_text(encoding="utf-8"))
        first = bytes([names.index(case["profile"])])
        for message in case["messages"]:
            text = message.get("text") or json.dumps(
                message.get("json", message.get("parts", "")), default=str
            )
            found.append(first + b"t=1767268800,v1=00ff\n" + text.encode())
    part = b'--b\r\nContent-Type: application/json\r\n\r\n{"a": 1}\r\n'
    part += b"--b\r\nContent-Type: image/jpeg\r\n\r\n\xff\r\n--b--"
    return [*found, *(bytes([byte]) + b"Basic dTpw\n" + part for byte in range(0, 256, 5))]


def mutate(data: bytes, among: list[bytes], chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 20)]
            case 2:
                other = chance.choice(among)
                start = chance.randrange(len(other))
                changed[at:at] = other[start : start + chance.randint(1, 60)]
            case 3:
                changed[at:at] = chance.choice(
                    [b"\0", b'"', b"{", b"[" * 200, b"9" * 400, b"\r\n", b"<a>", b"\xff", b"null"]
                )
            case 4:
                changed[at : at + 8] = changed[at : at + 8] * chance.randint(2, 40)
            case _:
                changed[:1] = bytes([chance.randrange(256)])
    return bytes(changed[:20_000])


def run(target: Callable[[bytes], None], seconds: float, seed: int) -> int:
    among, chance, count = seeds(), random.Random(seed), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(200):
            data = mutate(chance.choice(among), among, chance)
            try:
                target(data)
            except Exception as error:
                print(f"crash after {count} inputs: {error!r}\n{data!r}", file=sys.stderr)
                raise
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    said = parser.parse_args()
    target = Target()
    seed = said.seed if said.seed is not None else random.randrange(1 << 32)
    print(f"{run(target, said.seconds, seed)} inputs, no crash (seed {seed})")


if __name__ == "__main__":
    main()
