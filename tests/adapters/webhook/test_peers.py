"""Senders that are not ours: curl posts, and openssl makes signatures and certificates."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme

from services.adapters.webhook import config
from services.adapters.webhook.config import Settings
from shared.events import Kind
from tests import peers
from tests.adapters.webhook.house import KEY, MOTION_ALERT, House, device, house, kisi, unlock, until

pytestmark = pytest.mark.usefixtures("curl")


@pytest.fixture
def curl() -> str:
    return peers.program("curl", "apt-get install curl")


async def run(*command: str, given: bytes = b"", told: Literal["stdout", "stderr"] = "stdout") -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(given), 20)
    return out if told == "stdout" else err


async def curl_post(url: str, body: bytes, *options: str) -> tuple[int, bytes]:
    """Status and body of the answer; status 0 if there was none."""
    command = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code}", "--data-binary", "@-", *options, url]
    answer, _, status = (await run(*command, given=body)).rpartition(b"\n")
    return int(status or 0), answer


async def openssl_hmac(message: bytes, key: str, algorithm: str = "sha256", *, base64: bool = False) -> str:
    peers.program("openssl", "apt-get install openssl")
    raw = await run("openssl", "dgst", f"-{algorithm}", "-hmac", key, "-binary", given=message)
    if base64:
        return (await run("openssl", "base64", "-A", given=raw)).decode()
    return raw.hex()


def opened(profile: str, sensor: dict[str, Any], **said: Any) -> Any:
    return device(
        profile=profile, credentials={"signing_secret": {"secret": "key"}}, sensors={"s": sensor}, **said
    )


async def good_and_forged(gateway: House, path: str, body: bytes, good: list[str], forged: list[str]) -> None:
    assert (await curl_post(gateway.url + path, body, *forged))[0] == 401
    assert not gateway.reports
    assert (await curl_post(gateway.url + path, body, *good))[0] == 200
    assert len(gateway.reports) == 1


async def test_kisi() -> None:
    body = unlock()
    async with house({"lobby": kisi()}) as gateway:
        good = await openssl_hmac(body, KEY)
        bad = await openssl_hmac(body, "x")
        await good_and_forged(
            gateway, "/hooks/lobby", body, ["-H", f"X-Signature: {good}"], ["-H", f"X-Signature: {bad}"]
        )


async def test_verkada_signs_body_and_time() -> None:
    body = json.dumps(
        {
            "webhook_type": "notification",
            "data": {"event_id": "e1", "notification_type": "door_forced_open", "door_id": "d1"},
        }
    ).encode()
    door = {"type": "access_control", "door": "d1"}
    async with house({"v": opened("verkada", door)}) as gateway:
        now = int(time.time())
        good = await openssl_hmac(body + f"|{now}".encode(), KEY)
        await good_and_forged(
            gateway,
            "/hooks/v",
            body,
            ["-H", f"Verkada-Signature: {now}|{good}"],
            ["-H", f"Verkada-Signature: {now + 1}|{good}"],
        )
        # Its one retry comes with the first signature, however late.
        late = now - 3600
        signature = await openssl_hmac(body + f"|{late}".encode(), KEY)
        status, _ = await curl_post(
            gateway.url + "/hooks/v", body, "-H", f"Verkada-Signature: {late}|{signature}"
        )
        assert status == 200
        assert len(gateway.reports) == 1
        ancient = now - 3 * 86400
        signature = await openssl_hmac(body + f"|{ancient}".encode(), KEY)
        status, _ = await curl_post(
            gateway.url + "/hooks/v", body, "-H", f"Verkada-Signature: {ancient}|{signature}"
        )
        assert status == 401
        assert gateway.context.reasons[-1] == "proof_stale"


async def test_unifi_signs_time_and_body() -> None:
    body = (
        b'{"event":"access.door.unlock","data":{"location":{"id":"d1"},"object":{"result":"Access Granted"}}}'
    )
    door = {"type": "access_control", "door": "d1"}
    async with house({"u": opened("unifi-access", door)}) as gateway:
        now = int(time.time())
        good = await openssl_hmac(f"{now}.".encode() + body, KEY)
        old = await openssl_hmac(f"{now}.".encode() + body, "last year's key")
        await good_and_forged(
            gateway,
            "/hooks/u",
            body,
            ["-H", f"Signature: t={now},v1={old},v1={good}"],
            ["-H", f"Signature: t={now},v1={old}"],
        )
        assert gateway.reports[0].time is not None
        assert int(gateway.reports[0].time.timestamp()) == now


async def test_square_signs_its_url_too() -> None:
    url = "https://hooks.example.com/hooks/till"
    payment = {"id": "p", "status": "COMPLETED", "location_id": "L"}
    body = json.dumps({"type": "payment.updated", "data": {"object": {"payment": payment}}}).encode()
    async with house({"till": opened("square", {"type": "pos", "location": "L"}, public_url=url)}) as gateway:
        good = await openssl_hmac(url.encode() + body, KEY, base64=True)
        bad = await openssl_hmac(body, KEY, base64=True)
        name = "x-square-hmacsha256-signature"
        await good_and_forged(
            gateway, "/hooks/till", body, ["-H", f"{name}: {good}"], ["-H", f"{name}: {bad}"]
        )
        assert gateway.reports[0].kind is Kind.POS_SALE


async def test_shopify() -> None:
    body = b'{"id":1,"location_id":5,"note":"x"}'
    async with house({"shop": opened("shopify", {"type": "pos", "location": 5})}) as gateway:
        good = await openssl_hmac(body, KEY, base64=True)
        topic = ["-H", "X-Shopify-Topic: refunds/create"]
        await good_and_forged(
            gateway,
            "/hooks/shop",
            body,
            [*topic, "-H", f"X-Shopify-Hmac-Sha256: {good}"],
            [*topic, "-H", f"X-Shopify-Hmac-Sha256: {good[:-4]}AAA="],
        )


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("base64", [False, True])
async def test_any_other_hmac_is_data(algorithm: str, base64: bool) -> None:
    scheme = {
        "scheme": "hmac",
        "header": "X-Acme-Signature",
        "algorithm": algorithm,
        "encoding": "base64" if base64 else "hex",
        "format": f"{algorithm}={{signature}}",
        "signed": "v0:{timestamp}:{id}:{body}",
        "timestamp_header": "X-Acme-Time",
        "timestamp": "milliseconds",
        "id_header": "X-Acme-Id",
    }
    acme = device(profile="generic", authenticity=[scheme], credentials={"signing_secret": {"secret": "key"}})
    body = b'{"kind":"device.test"}'
    async with house({"acme": acme}) as gateway:
        now = int(time.time() * 1000)
        good = await openssl_hmac(f"v0:{now}:7:".encode() + body, KEY, algorithm, base64=base64)
        common = ["-H", f"X-Acme-Time: {now}", "-H", f"X-Acme-Signature: {algorithm}={good}"]
        await good_and_forged(
            gateway, "/hooks/acme", body, [*common, "-H", "X-Acme-Id: 7"], [*common, "-H", "X-Acme-Id: 8"]
        )


BODY = b'{"sensor":"s","kind":"motion.detected"}'
MOTION = {"s": {"type": "motion"}}
USER = {"username": {"secret": "user"}, "password": {"secret": "key"}}


@pytest.mark.parametrize(
    ("credentials", "good", "forged"),
    [
        (
            {"token": {"secret": "key"}},
            ["-H", f"Authorization: Bearer {KEY}"],
            ["-H", "Authorization: Bearer no"],
        ),
        (USER, ["--user", f"bob:{KEY}"], ["--user", f"eve:{KEY}"]),
    ],
)
async def test_bearer_and_basic(credentials: dict[str, Any], good: list[str], forged: list[str]) -> None:
    async with house(
        {"g": device(credentials=credentials, sensors=MOTION)}, secrets={"user": "bob"}
    ) as gateway:
        await good_and_forged(gateway, "/hooks/g", BODY, good, forged)
        assert (await curl_post(gateway.url + "/hooks/g", BODY))[0] == 401


@pytest.mark.parametrize(
    ("scheme", "good", "forged"),
    [
        ({"header": "X-Token"}, ["-H", f"X-Token: {KEY}"], ["-H", "X-Token: no"]),
        (
            {"header": "Authorization", "prefix": "Token "},
            ["-H", f"Authorization: Token {KEY}"],
            ["-H", f"Authorization: {KEY}"],
        ),
        ({"query": "key"}, [f"--url-query=key={KEY}"], ["--url-query=key=no"]),
    ],
)
async def test_tokens(scheme: dict[str, str], good: list[str], forged: list[str]) -> None:
    made = device(
        authenticity=[{"scheme": "token", **scheme}], credentials={"token": {"secret": "key"}}, sensors=MOTION
    )
    async with house({"g": made}) as gateway:
        path = "/hooks/g"
        if "query" in scheme:  # an old curl knows no --url-query
            assert (await curl_post(f"{gateway.url}{path}?key=no", BODY))[0] == 401
            assert (await curl_post(f"{gateway.url}{path}?key={KEY}", BODY))[0] == 200
        else:
            await good_and_forged(gateway, path, BODY, good, forged)


async def test_digest() -> None:
    hik = device(profile="hikvision", credentials=USER, sensors={"yard": {"type": "motion", "channel": 1}})
    async with house({"cam": hik}, secrets={"user": "bob"}) as gateway:
        await good_and_forged(
            gateway,
            "/hooks/cam",
            MOTION_ALERT,
            ["--digest", "-u", f"bob:{KEY}"],
            ["--digest", "-u", "bob:no"],
        )


async def test_digest_posts_at_once() -> None:
    """Four handshakes that begin in one second, as of a terminal with a connection for each event."""
    hik = device(profile="hikvision", credentials=USER)

    def event(number: int) -> bytes:
        access = {"majorEventType": 5, "subEventType": 27, "doorNo": 1, "serialNo": number}
        said = {"eventType": "AccessControllerEvent", "dateTime": "2026-11-22T17:00:00+00:00"}
        return json.dumps({**said, "AccessControllerEvent": access}).encode()

    async with house({"cam": hik}, secrets={"user": "bob"}) as gateway:
        url, proof = gateway.url + "/hooks/cam", ["--digest", "-u", f"bob:{KEY}"]
        answers = await asyncio.gather(*(curl_post(url, event(number), *proof) for number in range(4)))
        assert [status for status, _ in answers] == [200] * 4
        assert len(gateway.reports) == 4
        # One that went over the wire, sent again: refused, and told that only its nonce is used up.
        sent = await run("curl", "-sv", "-o", "/dev/null", *proof, "-d", "{}", url, told="stderr")
        header = next(
            line[2:].decode() for line in sent.splitlines() if line.startswith(b"> Authorization: Digest")
        )
        again = await gateway.post(event(9), dict([header.split(": ", 1)]), path="/hooks/cam")
        assert again.status == 401
        assert again.headers["www-authenticate"].endswith(", stale=true")
        assert len(gateway.reports) == 4


async def test_a_multipart_body_with_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "car.jpg"
    picture.write_bytes(b"\xff\xd8\xff" + bytes(range(256)) * 200)
    made = device(
        profile="platerecognizer",
        credentials={"token": {"secret": "key"}},
        sensors={"gate": {"type": "ai", "camera": "camera-1"}},
    )
    message = {
        "hook": {"event": "recognition"},
        "data": {
            "camera_id": "camera-1",
            "timestamp": "2026-01-01T11:00:00Z",
            "results": [{"plate": "pl8rec"}],
        },
    }
    async with house({"lpr": made}) as gateway:
        out = await run(
            "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Token {KEY}",
            "-F", f"json={json.dumps(message)}", "-F", f"upload=@{picture}", gateway.url + "/hooks/lpr",
        )  # fmt: skip
        assert out == b"200"
        (report,) = gateway.reports
        assert (report.kind, report.sensor, list(report.labels)) == (Kind.AI_PLATE, "gate", ["pl8rec"])


async def test_the_script_of_the_readme(tmp_path: Path) -> None:
    script = (
        (Path(config.__file__).parent / "README.md").read_text().partition("```sh\n")[2].partition("```")[0]
    )
    (tmp_path / "scripts_key").write_text(KEY)
    scripts = device(
        credentials={"signing_secret": {"secret": "key"}}, sensors={"cellar-leak": {"type": "water_leak"}}
    )
    async with house({"scripts": scripts}) as gateway:
        script = script.replace("http://gateway:8080", gateway.url)
        assert await run("sh", "-c", f"cd {tmp_path}; {script}") == b"{}"
        assert [(report.sensor, report.kind) for report in gateway.reports] == [
            ("cellar-leak", Kind.WATER_LEAK)
        ]


async def test_large_and_chunked_uploads(tmp_path: Path) -> None:
    body = unlock(1, note="x " * 200_000)
    async with house({"lobby": kisi()}) as gateway:
        signature = ["-H", f"X-Signature: {await openssl_hmac(body, KEY)}"]
        chunked = [*signature, "-H", "Transfer-Encoding: chunked"]
        assert (await curl_post(gateway.url + "/hooks/lobby", body, *signature))[0] == 200
        assert (await curl_post(gateway.url + "/hooks/lobby", body, *chunked))[0] == 200
        too_large = unlock(2, note="x " * 2_000_000)
        signature = ["-H", f"X-Signature: {await openssl_hmac(too_large, KEY)}"]
        assert (await curl_post(gateway.url + "/hooks/lobby", too_large, *signature))[0] == 413
        assert len(gateway.reports) == 1


async def test_curl_that_offers_http2() -> None:
    body = unlock()
    async with house({"lobby": kisi()}) as gateway:
        signature = await openssl_hmac(body, KEY)
        status, _ = await curl_post(
            gateway.url + "/hooks/lobby", body, "--http2", "-H", f"X-Signature: {signature}"
        )
        assert status == 200


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


class Pki:
    """A CA of trustme's, and what it has signed, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.server = self.issue("server", "127.0.0.1", "localhost")

    def issue(self, name: str, *hosts: str, by: trustme.CA | None = None) -> tuple[Path, Path]:
        made = (by or self.authority).issue_cert(*hosts, common_name=f"{name}.example")
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return certificate, key

    def settings(self, **tls: Any) -> Settings:
        certificate, key = self.server
        return Settings.model_validate(
            {"listen": "127.0.0.1:0", "tls": {"certificate": certificate, "key": key, **tls}}
        )


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


async def test_https(pki: Pki) -> None:
    body = unlock()
    async with house({"lobby": kisi()}, pki.settings()) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/hooks/lobby"
        signature = ["-H", f"X-Signature: {await openssl_hmac(body, KEY)}"]
        assert (await curl_post(url, body, "--cacert", str(pki.ca), *signature))[0] == 200
        assert (await curl_post(url, body, *signature))[0] == 0  # nobody knows its CA
        assert (await curl_post(url, body, "--cacert", str(pki.ca), "--tls-max", "1.1", *signature))[0] == 0
        assert (await curl_post(url.replace("https", "http"), body, *signature))[0] in (0, 400)
        big = unlock(2, note="x " * 2_000_000)
        assert (await curl_post(url, big, "--cacert", str(pki.ca), *signature))[0] == 413


async def test_client_certificates(pki: Pki) -> None:
    panel, dock = pki.issue("panel", "panel.local"), pki.issue("dock", "dock.local")
    stranger = pki.issue("stranger", "panel.local", by=trustme.CA())
    fingerprint = (
        (await run("openssl", "x509", "-in", str(panel[0]), "-noout", "-fingerprint", "-sha256"))
        .decode().strip().partition("=")[2].replace(":", "").lower()
    )  # fmt: skip
    devices = {
        "by-name": device(
            client_certificate={"common_name": "panel.example"}, sensors={"a": {"type": "motion"}}
        ),
        "by-san": device(client_certificate={"san": "panel.local"}),
        "by-print": device(client_certificate={"sha256": fingerprint}),
        "signed": kisi(),
    }
    async with house(devices, pki.settings(client_ca=pki.ca)) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/hooks/"

        async def with_certificate(who: tuple[Path, Path] | None, path: str) -> int:
            shown = ["--cert", str(who[0]), "--key", str(who[1])] if who else []
            return (await curl_post(url + path, BODY, "--cacert", str(pki.ca), *shown))[0]

        for path in ("by-name", "by-san", "by-print"):
            assert await with_certificate(panel, path) == 200
            assert await with_certificate(dock, path) == 404
            assert await with_certificate(None, path) == 404
        assert await with_certificate(stranger, "by-san") == 0
        assert await with_certificate(None, "signed") == 401
    async with house(devices, pki.settings(client_ca=pki.ca, client_required=True)) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/hooks/"
        assert await with_certificate(None, "by-name") == 0
        assert await with_certificate(panel, "by-name") == 200


async def test_a_certificate_device_needs_a_listener_that_asks_for_one() -> None:
    async with house({"a": device(client_certificate={"common_name": "x"})}) as gateway:
        assert gateway.context.reasons == ["no_client_ca"]
        assert (await curl_post(gateway.url + "/hooks/a", BODY))[0] == 404


async def test_a_renewed_certificate_is_used_without_a_restart(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.tls.LOOK", 0.02)
    client = ssl.create_default_context(cafile=str(pki.ca))

    async def serial(port: int) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        number: str = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return number

    async with house({"lobby": kisi()}, pki.settings()) as gateway:
        before = await serial(gateway.port)
        pki.issue("server", "127.0.0.1", "localhost")
        for _ in range(100):
            await asyncio.sleep(0.03)
            if await serial(gateway.port) != before:
                break
        else:
            pytest.fail("the old certificate is still shown")
        pki.server[0].write_text("rubbish")
        await until(lambda: "certificate" in gateway.context.reasons)
        assert await serial(gateway.port) != before
