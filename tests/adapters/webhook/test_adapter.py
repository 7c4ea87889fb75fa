"""The receiver as a whole, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.adapters.webhook.config import Device, Settings
from shared.events import Kind
from tests.adapters.webhook.house import (
    KEY,
    MOTION_ALERT,
    Answered,
    device,
    house,
    kisi,
    sign,
    statuses,
    unlock,
    until,
)


def local(**said: object) -> Settings:
    return Settings.model_validate({"listen": "127.0.0.1:0", **said})


async def test_a_signed_event_is_taken_and_answered() -> None:
    async with house({"lobby": kisi()}) as gateway:
        answer = await gateway.kisi(unlock())
        assert (answer.status, answer.body) == (200, b"{}")
        assert answer.headers["content-type"] == "application/json"
        (report,) = gateway.reports
        assert (report.device, report.sensor, report.kind) == (
            "lobby",
            "front-door",
            Kind.ACCESS_ENTRY_UNLOCKED,
        )
        assert report.time == datetime(2026, 10, 6, 13, 49, 35, tzinfo=UTC)
        assert "lobby" in gateway.context.alive


async def test_nothing_is_answered_before_it_is_safe() -> None:
    async with house({"lobby": kisi()}) as gateway:
        safe = asyncio.Event()
        gateway.context.before_commit = safe.wait
        answering = asyncio.create_task(gateway.kisi(unlock()))
        done, _ = await asyncio.wait({answering}, timeout=0.2)
        assert not done
        safe.set()
        assert (await answering).status == 200


async def test_an_event_under_way_is_kept_though_its_sender_hangs_up() -> None:
    async with house({"lobby": kisi()}) as gateway:
        safe = asyncio.Event()
        gateway.context.before_commit = safe.wait
        body = unlock()
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /hooks/lobby HTTP/1.1\r\nHost: x\r\nX-Signature: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (sign(body).encode(), len(body), body)
        )
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()
        safe.set()
        await until(lambda: gateway.reports)


async def test_a_full_store_sends_the_vendor_away_for_a_while() -> None:
    async with house({"lobby": kisi()}) as gateway:
        gateway.context.full = True
        answer = await gateway.kisi(unlock())
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "store_full" in gateway.context.reasons
        gateway.context.full = False
        assert (await gateway.kisi(unlock())).status == 200
        assert len(gateway.reports) == 1


async def test_an_edge_that_could_not_be_kept_is_told_again() -> None:
    hik = device(profile="hikvision", path="/" + "r" * 30, sensors={"yard": {"type": "motion", "channel": 1}})
    async with house({"cam": hik}) as gateway:
        gateway.context.full = True
        assert (await gateway.post(MOTION_ALERT, path="/" + "r" * 30)).status == 503
        gateway.context.full = False
        assert (await gateway.post(MOTION_ALERT, path="/" + "r" * 30)).status == 200
        assert [report.kind for report in gateway.reports] == [Kind.MOTION_DETECTED]


async def test_a_failing_store_is_a_500_and_the_service_goes_on() -> None:
    async def fail() -> None:
        raise OSError("disk gone")

    async with house({"lobby": kisi()}) as gateway:
        gateway.context.before_commit = fail
        assert (await gateway.kisi(unlock())).status == 500
        assert "failure" in gateway.context.reasons
        gateway.context.before_commit = None
        assert (await gateway.kisi(unlock())).status == 200


async def test_a_replay_is_answered_and_is_no_second_event() -> None:
    async with house({"lobby": kisi()}) as gateway:
        for _ in range(3):
            assert (await gateway.kisi(unlock())).status == 200
        assert len(gateway.reports) == 1


async def test_forgeries_are_refused_before_they_are_read() -> None:
    async with house({"lobby": kisi()}) as gateway:
        body = unlock()
        for headers in (
            {},
            {"X-Signature": ""},
            {"X-Signature": "zz"},
            {"X-Signature": sign(body)[:-2]},
            {"X-Signature": sign(body, "another key")},
            {"X-Signature": sign(body + b" ")},
        ):
            assert (await gateway.post(body, headers)).status == 401
        # Not JSON at all, and still it is only the signature that is spoken of.
        assert (await gateway.post(b"{{{{", {"X-Signature": sign(b"x")})).status == 401
        assert not gateway.reports
        assert set(gateway.context.reasons) == {"proof_missing", "proof_malformed", "proof_wrong"}


async def test_a_genuine_body_that_cannot_be_read_is_a_400_and_counted() -> None:
    async with house({"lobby": kisi()}) as gateway:
        for body in (b"", b"{", b"\xff\xfe", b"[" * 5000, b"nope"):
            answer = await gateway.kisi(body)
            assert answer.status == 400
        assert gateway.context.reasons == ["unreadable"] * 5
        assert not gateway.reports


async def test_vendors_that_would_repeat_for_ever_are_told_that_all_is_well() -> None:
    zk = device(profile="zkteco", serial="A1", allow=["127.0.0.0/8"])
    async with house({"gate": zk}) as gateway:
        answer = await gateway.post(b"garbage", path="/iclock/cdata?SN=A1&table=rtlog")
        assert (answer.status, answer.body) == (200, b"OK")
        assert gateway.context.reasons == ["unreadable"]


async def test_unknown_paths_tell_nothing() -> None:
    restricted = kisi(allow=["203.0.113.0/24"])
    async with house({"lobby": kisi(), "vault": restricted}) as gateway:
        unknown = await gateway.post(unlock(), path="/hooks/nothing")
        not_from_here = await gateway.post(unlock(), {"X-Signature": sign(unlock())}, path="/hooks/vault")
        assert unknown.status == not_from_here.status == 404
        assert unknown.body == not_from_here.body == b""
        assert unknown.headers.keys() == not_from_here.headers.keys()
        for path in (
            "/",
            "/hooks",
            "/hooks/lobby/",
            "/hooks/../hooks/lobby",
            "/HOOKS/lobby",
            "//hooks/lobby",
        ):
            assert (await gateway.post(unlock(), path=path)).status == 404


async def test_methods() -> None:
    async with house({"lobby": kisi()}) as gateway:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"):
            answer = await gateway.post(b"", method=method)
            assert answer.status == 405
            assert answer.headers["allow"] == "POST"


async def test_any_content_type_will_do() -> None:
    async with house({"lobby": kisi()}) as gateway:
        types = ("application/json", "text/plain", "application/xml", "application/octet-stream", "nonsense")
        for number, kind in enumerate(types):
            assert (await gateway.kisi(unlock(number), **{"Content-Type": kind})).status == 200
        assert len(gateway.reports) == len(types)


async def test_a_compressed_body_is_refused_with_a_reason() -> None:
    async with house({"lobby": kisi()}) as gateway:
        answer = await gateway.kisi(unlock(), **{"Content-Encoding": "gzip"})
        assert answer.status == 415


async def test_one_device_cannot_speak_for_another() -> None:
    mine = kisi(credentials={"signing_secret": {"secret": "other"}})
    async with house({"lobby": kisi(), "dock": mine}, secrets={"other": "dock-key"}) as gateway:
        body = unlock()
        assert (await gateway.post(body, {"X-Signature": sign(body)}, path="/hooks/dock")).status == 401
        answer = await gateway.post(body, {"X-Signature": sign(body, "dock-key")}, path="/hooks/dock")
        assert answer.status == 200
        assert [report.device for report in gateway.reports] == ["dock"]


async def test_rate_of_a_device() -> None:
    async with house({"lobby": kisi(rate=1), "dock": kisi()}) as gateway:
        codes = [(await gateway.kisi(unlock(number))).status for number in range(14)]
        assert codes[:10] == [200] * 10
        assert 429 in codes[10:]
        refused = await gateway.kisi(unlock(99))
        assert int(refused.headers["retry-after"]) >= 1
        body = unlock(100)
        assert (await gateway.post(body, {"X-Signature": sign(body)}, path="/hooks/dock")).status == 200


async def test_who_guesses_is_slowed_down_and_costs_no_log() -> None:
    settings = local(limits={"failures": 0.5}, forwarded=["127.0.0.1/32"])
    async with house({"lobby": kisi()}, settings) as gateway:
        guesser = {"X-Forwarded-For": "198.51.100.7", "X-Signature": "00" * 32}
        codes = [(await gateway.post(unlock(), guesser)).status for _ in range(8)]
        assert codes == [401] * 5 + [429] * 3
        assert len(gateway.context.rejections) == 5
        assert gateway.context.counted["tocsin_webhook_throttled_total"] == 3
        vendor = {"X-Forwarded-For": "203.0.113.9", "X-Signature": sign(unlock())}
        assert (await gateway.post(unlock(), vendor)).status == 200


def digest(challenge: str, path: str, password: str = KEY) -> dict[str, str]:
    """The proof of the user bob, as an answer to a challenge."""
    nonce = challenge.partition('nonce="')[2].partition('"')[0]

    def h(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    response = h(f"{h(f'bob:tocsin:{password}')}:{nonce}:00000001:c0:auth:{h(f'POST:{path}')}")
    return {
        "Authorization": f'Digest username="bob", nonce="{nonce}", uri="{path}", qop=auth, nc=00000001, '
        f'cnonce="c0", response="{response}", algorithm=MD5'
    }


def camera() -> Device:
    return device(
        profile="hikvision", credentials={"username": {"secret": "user"}, "password": {"secret": "key"}}
    )


async def test_the_first_leg_of_digest_is_no_failure() -> None:
    """A device that sends faster than strangers may fail, each event with a handshake of its own."""
    settings = local(limits={"failures": 0.5, "connections_per_address": 4})
    async with house({"cam": camera()}, settings, {"user": "bob"}) as gateway:
        for _ in range(20):
            first = await gateway.post(MOTION_ALERT, path="/hooks/cam")
            assert first.status == 401
            proof = digest(first.headers["www-authenticate"], "/hooks/cam")
            assert (await gateway.post(MOTION_ALERT, proof, path="/hooks/cam")).status == 200
        assert not gateway.context.rejections
        assert not gateway.context.counted


async def test_challenges_that_nobody_answers_are_failures_in_the_end() -> None:
    settings = local(limits={"failures": 0.5, "connections_per_address": 4})
    async with house({"cam": camera()}, settings, {"user": "bob"}) as gateway:
        codes = [(await gateway.post(b"", path="/hooks/cam")).status for _ in range(14)]
        assert codes == [401] * 10 + [429] * 4
        assert gateway.context.reasons == ["proof_missing"] * 5


async def test_a_wrong_answer_to_a_challenge_is_a_failure() -> None:
    async with house({"cam": camera()}, local(limits={"failures": 0.2}), {"user": "bob"}) as gateway:
        first = await gateway.post(b"", path="/hooks/cam")
        proof = digest(first.headers["www-authenticate"], "/hooks/cam", "another")
        codes = [(await gateway.post(b"", proof, path="/hooks/cam")).status for _ in range(4)]
        assert codes == [401] * 2 + [429] * 2
        assert gateway.context.reasons == ["proof_wrong"] * 2


async def test_forwarded_addresses_are_believed_from_proxies_only() -> None:
    allowed = kisi(allow=["203.0.113.0/24"])
    body = unlock()
    genuine = {"X-Signature": sign(body)}
    async with house({"lobby": allowed}) as gateway:
        claimed = {**genuine, "X-Forwarded-For": "203.0.113.5"}
        assert (await gateway.post(body, claimed)).status == 404
    async with house({"lobby": allowed}, local(forwarded=["127.0.0.1"])) as gateway:
        assert (await gateway.post(body, claimed)).status == 200
        # What a client wrote itself stands to the left of what the proxy added.
        spoofed = {**genuine, "X-Forwarded-For": "203.0.113.5, 198.51.100.1"}
        assert (await gateway.post(body, spoofed)).status == 404
        chained = {**genuine, "X-Forwarded-For": "203.0.113.5, 127.0.0.1"}
        assert (await gateway.post(body, chained)).status == 200


async def test_the_openpath_handshake_is_echoed() -> None:
    openpath = device(profile="openpath", credentials={"token": {"secret": "key"}}, sensors={})
    async with house({"alta": openpath}) as gateway:
        answer = await gateway.post(b"", {"X-Hook-Secret": "s3cr3t-of-theirs"}, path="/hooks/alta")
        assert (answer.status, answer.headers["x-hook-secret"]) == (200, "s3cr3t-of-theirs")
        # With a body it is no handshake, and needs proof.
        answer = await gateway.post(b'{"event":"entry.unlocked"}', {"X-Hook-Secret": "x"}, path="/hooks/alta")
        assert answer.status == 401
        event = b'{"event":"entry.unlocked","id":1,"entryId":3}'
        assert (await gateway.post(event, path=f"/hooks/alta?key={KEY}")).status == 200
        assert len(gateway.reports) == 1
        assert (await gateway.post(b"", {"X-Hook-Secret": "bad\x01thing"}, path="/hooks/alta")).status in (
            400,
            401,
        )


async def test_the_clover_code_is_logged_for_a_person(caplog: pytest.LogCaptureFixture) -> None:
    clover = device(profile="clover", credentials={"token": {"secret": "key"}})
    async with house({"pos": clover}) as gateway:
        body = b'{"verificationCode":"ce7643c1-83ea-4218-abe6-da876c9c7a0a"}'
        assert (await gateway.post(body, path="/hooks/pos")).status == 200
        assert "ce7643c1-83ea-4218-abe6-da876c9c7a0a" in caplog.text
        assert (await gateway.post(b'{"verificationCode":"x\\n y"}', path="/hooks/pos")).status == 401
        event = b'{"appId":"A","merchants":{"M1":[{"objectId":"P:1","type":"CREATE","ts":1}]}}'
        assert (await gateway.post(event, path="/hooks/pos")).status == 401
        assert (await gateway.post(event, {"X-Clover-Auth": KEY}, path="/hooks/pos")).status == 200
        assert [report.kind for report in gateway.reports] == [Kind.POS_SALE]


@pytest.mark.parametrize(
    ("handshake", "request_", "want"),
    [
        (
            "{field: challenge, echo: json}",
            ("POST", "", b'{"challenge":"abc","type":"x"}'),
            b'{"challenge":"abc"}',
        ),
        ("{field: challenge, echo: text}", ("POST", "", b'{"challenge":"abc"}'), b"abc"),
        ("{query: hub.challenge, echo: text}", ("GET", "?hub.challenge=abc", b""), b"abc"),
    ],
)
async def test_other_challenges(
    tmp_path: Path, handshake: str, request_: tuple[str, str, bytes], want: bytes
) -> None:
    own = tmp_path / "acme.yaml"
    own.write_text(
        f"about: Acme\nhandshakes: [{handshake}]\nauthenticity: [{{scheme: bearer}}]\n"
        "rules: [{kind: sensor.event}]\n"
    )
    acme = device(profile=str(own), credentials={"token": {"secret": "key"}})
    method, query, body = request_
    async with house({"acme": acme}) as gateway:
        answer = await gateway.post(body, path=f"/hooks/acme{query}", method=method)
        assert (answer.status, answer.body) == (200, want)
        assert not gateway.reports
        assert (await gateway.post(b"", path="/hooks/acme", method="GET")).status == 405


async def test_zkteco_devices_share_a_path_and_are_told_apart() -> None:
    def zk(serial: str) -> object:
        return device(
            profile="zkteco",
            serial=serial,
            allow=["127.0.0.1"],
            timezone="Asia/Shanghai",
            sensors={f"door-{serial.lower()}": {"type": "access_control", "door": 1}},
        )

    async with house({"one": zk("A1"), "two": zk("B2")}) as gateway:  # type: ignore[dict-item]
        options = await gateway.post(b"", path="/iclock/cdata?SN=A1&options=all&pushver=2.4.1", method="GET")
        assert options.status == 200
        assert options.headers["content-type"].startswith("text/plain")
        assert options.body.startswith(b"GET OPTION FROM: A1\n")
        registered = await gateway.post(
            b"", path="/iclock/cdata?SN=B2&DeviceType=acc&options=all", method="GET"
        )
        assert registered.body.startswith(b"registry=ok\nRegistryCode=")
        assert (await gateway.post(b"", path="/iclock/getrequest?SN=A1", method="GET")).body == b"OK"
        row = b"time=2026-02-23 14:13:48\tpin=2\tcardno=0\teventaddr=1\tevent=3\tindex=140"
        assert (await gateway.post(row, path="/iclock/cdata?SN=B2&table=rtlog")).body == b"OK"
        rows = b"7\t2026-02-23 14:13:48\t0\t1\n8\t2026-02-23 14:13:49\t0\t1\n"
        assert (await gateway.post(rows, path="/iclock/cdata?SN=A1&table=ATTLOG&Stamp=1")).body == b"OK: 2"
        assert (await gateway.post(b"", path="/iclock/getrequest?SN=C3", method="GET")).status == 404
        assert (await gateway.post(b"", path="/iclockish/getrequest?SN=A1", method="GET")).status == 404
        assert [(report.device, report.sensor) for report in gateway.reports] == [
            ("two", "door-b2"),
            ("one", None),
            ("one", None),
        ]


async def test_pins_and_cards_stay_here() -> None:
    verkada = device(
        profile="verkada",
        authenticity=[{"scheme": "bearer"}],
        credentials={"token": {"secret": "key"}},
        sensors={"door": {"type": "access_control", "door": "d1"}},
    )
    body = {
        "webhook_type": "notification",
        "data": {
            "event_id": "e1",
            "notification_type": "door_code_entered_rejected",
            "door_id": "d1",
            "input_value": "481516",
            "user_info": {"name": "Ada", "pin_code": "481516", "card_number": "99887766"},
        },
    }
    async with house({"v": verkada}) as gateway:
        answer = await gateway.post(
            json.dumps(body).encode(), {"Authorization": f"Bearer {KEY}"}, path="/hooks/v"
        )
        assert answer.status == 200
        told = repr(gateway.reports) + repr(gateway.context.__dict__)
        assert "Ada" in told
        assert "481516" not in told
        assert "99887766" not in told


async def test_no_credential_is_ever_told() -> None:
    basic = device(
        profile="generic", credentials={"username": {"secret": "user"}, "password": {"secret": "pass"}}
    )
    async with house({"a": basic, "lobby": kisi()}, secrets={"user": "bob", "pass": "hunter-two"}) as gateway:
        nearly = base64.b64encode(b"bob:hunter-twp").decode()
        await gateway.post(b"{}", {"Authorization": f"Basic {nearly}"}, path="/hooks/a")
        await gateway.post(b"{}", {"X-Signature": KEY})
        said = repr(gateway.context.rejections)
        assert "hunter" not in said
        assert nearly not in said
        assert KEY not in said


async def test_a_device_without_its_secret_is_refused_until_it_has_it() -> None:
    late = kisi(credentials={"signing_secret": {"secret": "late"}})
    async with house({"lobby": late, "dock": kisi()}) as gateway:
        body = unlock()
        assert "no_credentials" in gateway.context.reasons
        assert (await gateway.post(body, {"X-Signature": sign(body, "k2")})).status == 404
        assert (await gateway.post(body, {"X-Signature": sign(body)}, path="/hooks/dock")).status == 200
        gateway.context.secrets["late"] = "k2"
        gateway.context.change()
        await asyncio.sleep(0.05)
        assert (await gateway.post(body, {"X-Signature": sign(body, "k2")})).status == 200


async def test_a_new_site_file_takes_effect_at_once() -> None:
    async with house({"lobby": kisi()}) as gateway:
        gateway.context.change({"dock": kisi(path="/other/path")})
        await asyncio.sleep(0.05)
        body = unlock()
        assert (await gateway.kisi(body)).status == 404
        answer = await gateway.post(body, {"X-Signature": sign(body)}, path="/other/path")
        assert answer.status == 200
        assert gateway.reports[0].device == "dock"


async def test_the_listener_moves_when_the_site_file_says_so() -> None:
    async with house({"lobby": kisi()}) as gateway:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        gateway.context.change(settings=local(listen=f"127.0.0.1:{port}"))
        await until(lambda: gateway.port == port and gateway.adapter.ready())
        assert (await gateway.kisi(unlock())).status == 200
        gateway.context.change(settings=local(listen=f"127.0.0.1:{port}", limits={"body_bytes": 10}))
        await asyncio.sleep(0.05)
        assert (await gateway.kisi(unlock())).status == 413


async def test_a_move_that_cannot_be_is_told_and_not_made() -> None:
    async with house({"lobby": kisi()}) as gateway:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            gateway.context.change(settings=local(listen=f"127.0.0.1:{other.getsockname()[1]}"))
            await until(lambda: gateway.context.reasons == ["listener"])
        gateway.context.change(settings=local(tls={"certificate": "/nowhere.pem", "key": "/nowhere.key"}))
        await until(lambda: gateway.context.reasons == ["listener"] * 2)
        assert "/nowhere.pem" in gateway.context.rejections[-1][1]
        assert (await gateway.kisi(unlock())).status == 200


async def test_pictures_may_be_large() -> None:
    path = "/" + "r" * 30
    hik = device(profile="hikvision", path=path, sensors={"yard": {"type": "motion", "channel": 1}})
    picture = b"--b\r\nContent-Type: image/jpeg\r\n\r\n" + b"\xff\xd8" * 2_000_000 + b"\r\n--b--"
    body = b"--b\r\nContent-Type: application/xml\r\n\r\n" + MOTION_ALERT + b"\r\n" + picture
    async with house({"cam": hik}) as gateway:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert (await gateway.post(body, kind, path=path)).status == 200
        assert [report.sensor for report in gateway.reports] == ["yard"]


async def test_a_taken_port_ends_the_adapter_with_a_reason() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="address"):
            async with house({}, local(listen=f"127.0.0.1:{other.getsockname()[1]}")):
                pass


async def test_two_keys_hold_while_one_is_changed() -> None:
    async with house({"lobby": kisi()}, secrets={"key": "old-key\nnew-key\n"}) as gateway:
        for number, key in enumerate(("old-key", "new-key")):
            body = unlock(number)
            assert (await gateway.post(body, {"X-Signature": sign(body, key)})).status == 200
        body = unlock(3)
        assert (await gateway.post(body, {"X-Signature": sign(body, "older-key")})).status == 401


async def test_several_requests_on_one_connection() -> None:
    async with house({"lobby": kisi()}) as gateway:
        requests = b"".join(
            b"POST /hooks/lobby HTTP/1.1\r\nHost: x\r\nX-Signature: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (sign(body).encode(), len(body), body)
            for body in (unlock(number) for number in range(50))
        )
        answer = await gateway.raw(requests, end=True)
        assert statuses(answer)[:1] == [200]
        assert len(gateway.reports) >= 1
        assert Answered(answer).headers.get("date", "").endswith("GMT")


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ValidationError, match="verkad"):
        device(profile="verkad")


async def test_a_signed_request_without_id_or_time_is_one_event_however_often_it_comes() -> None:
    device = Device.model_validate(
        {
            "adapter": "webhook",
            "credentials": {"signing_secret": {"secret": "key"}},
            "sensors": {"yard": {"type": "motion"}},
        }
    )
    body = b'{"sensor": "yard", "kind": "motion.detected"}'

    def proof(at: int) -> dict[str, str]:
        return {"X-Tocsin-Signature": f"t={at},v1={sign(b'%d.%b' % (at, body))}"}

    now = int(time.time())
    async with house({"lobby": device}) as gateway:
        for headers in (proof(now), proof(now), proof(now - 1)):
            assert (await gateway.post(body, headers)).status == 200
        assert len(gateway.reports) == 2
