"""Who is let in by the simulator, which is as strict as a server should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.adapters.opcua.adapter import probe
from services.broker import free_port
from tests.adapters.opcua.house import context, device, identity, simulated


async def test_certificates_of_the_server_the_gateway_and_the_user(tmp_path: Path) -> None:
    theirs, their_key = identity("urn:tocsin:simulator")
    own, user, other = ("".join(identity(f"urn:tocsin:{name}")) for name in ("gateway", "user", "other"))
    (tmp_path / "server.pem").write_text(theirs)
    (tmp_path / "server.key").write_text(their_key)
    (tmp_path / "other.pem").write_text(other)
    port = free_port()

    def about(file: str = "server.pem") -> Any:
        security = {"certificate": {"secret": "client"}, "server_certificate": str(tmp_path / file)}
        return device(port, security=security, credentials={"certificate": {"secret": "user"}})

    async def tried(made: Any, **secrets: str) -> str | None:
        return await probe(made, context({}, **{"client": own, "user": user, **secrets}).secret)

    async with simulated(context({}, client=own, user=user), about()):
        assert await tried(about()) is None
        assert "refuses the user" in (await tried(about(), user=other) or "")
        assert "does not trust our certificate" in (await tried(about(), client=other) or "")
        assert "shows a certificate that is not trusted" in (await tried(about("other.pem")) or "")
