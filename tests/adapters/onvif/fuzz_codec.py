"""Throws bytes at all that reads what devices send: answers, notifications, probe matches, challenges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from services.adapters.onvif import client, codec, discovery, soap  # noqa: E402
from services.adapters.onvif.config import Device  # noqa: E402
from shared import dialect  # noqa: E402


class _Memory(dict[str, str | None]):
    def recall(self, key: str) -> str | None:
        return self.get(key)


_SENSORS = {"a": {"type": "motion", "source": "1"}, "b": {"type": "access_control", "door": "Door-1"}}
_DECODERS = [
    codec.Decoder(
        "d",
        Device.model_validate(
            {"adapter": "onvif", "url": "http://192.0.2.1", "profile": name, "sensors": _SENSORS}
        ),
        "UTC",
    )
    for name in dialect.names("services.adapters.onvif")
]


def fuzz_one(data: bytes) -> None:
    for challenge in client.challenges([data.decode("latin-1")]):
        header = client.Digest("user", "password", challenge).header("POST", "/x")
        assert "password" not in header.replace(challenge.get("realm", ""), "").replace(
            challenge.get("nonce", ""), ""
        ).replace(challenge.get("opaque", ""), "")
    try:
        root = soap.parse(data)
    except soap.Unreadable:
        return
    soap.parse(root.xml().encode())
    try:
        for match in discovery.matches(data, [root.get("Header", "RelatesTo")]):
            discovery.found(match, "192.0.2.1")
    except soap.Unreadable:
        pass
    try:
        answer = soap.body(root)
    except (soap.Unreadable, soap.Fault) as error:
        if isinstance(error, soap.Fault):
            codec.longest_pull(error)
        return
    codec.system_time(answer)
    codec.event_service(answer)
    codec.lifetime(answer)
    try:
        made = codec.subscription(answer)
        assert codec.Subscription.from_text(made.to_text()) == made
        soap.parse(soap.envelope("", soap.addressed("Renew", made.address, "urn:x", made.reference)))
    except soap.Unreadable:
        pass
    memory = _Memory()
    for number, said in enumerate(codec.notifications(answer)):
        if isinstance(said, codec.Notification):
            result = _DECODERS[number % len(_DECODERS)].read(said, memory=memory)
            memory.update(result.memory)
            for report in result.reports:
                json.dumps([dict(report.details), dict(report.native), report.running])


def seeds() -> list[bytes]:
    """The golden cases in answers, and the other bodies that a device sends."""
    names = 'xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:wsnt="http://docs.oasis-open.org/wsn/b-2"'
    found = []
    for path in sorted((HERE / "golden").glob("*.yaml")):
        for message in yaml.safe_load(path.read_text(encoding="utf-8"))["messages"]:
            for one in message["xml"].split("</wsnt:NotificationMessage>"):
                text = f"{one}</wsnt:NotificationMessage>" if one.strip() else ""
                found.append(
                    soap.envelope(f"<e:PullMessagesResponse {names}>{text}</e:PullMessagesResponse>")
                )
    times = "<n:CurrentTime>2026-01-01T00:00:00Z</n:CurrentTime>"
    times += "<n:TerminationTime>2026-01-01T00:10:00Z</n:TerminationTime>"
    return [
        *found,
        soap.envelope(
            "<e:CreatePullPointSubscriptionResponse><e:SubscriptionReference><a:Address>http://x/1</a:Address>"
            '<a:ReferenceParameters><p:Id xmlns:p="urn:p" k="v">1</p:Id></a:ReferenceParameters>'
            f"</e:SubscriptionReference>{times}</e:CreatePullPointSubscriptionResponse>"
        ),
        soap.envelope(
            "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value>"
            '</s:Subcode></s:Code><s:Reason><s:Text xml:lang="en">no</s:Text></s:Reason><s:Detail>'
            "<e:PullMessagesFaultResponse><e:MaxTimeout>PT30S</e:MaxTimeout></e:PullMessagesFaultResponse>"
            "</s:Detail></s:Fault>"
        ),
        soap.envelope(
            "<d:GetServicesResponse><d:Service><d:Namespace>http://www.onvif.org/ver10/events/wsdl"
            "</d:Namespace><d:XAddr>http://x/e</d:XAddr><d:Capabilities><e:Capabilities "
            'PersistentNotificationStorage="true"/></d:Capabilities></d:Service></d:GetServicesResponse>'
        ),
        soap.envelope(
            f'<w:ProbeMatches xmlns:w="{discovery.DISCOVERY}"><w:ProbeMatch><w:Scopes>onvif://www.onvif.org/'
            "name/x onvif://www.onvif.org/Profile/T</w:Scopes><w:XAddrs>http://x/onvif/device_service"
            "</w:XAddrs></w:ProbeMatch></w:ProbeMatches>",
            "<a:RelatesTo>urn:uuid:1</a:RelatesTo>",
        ),
        b'Digest realm="x", qop="auth,auth-int", nonce="n", algorithm=SHA-256, opaque="o"',
    ]
