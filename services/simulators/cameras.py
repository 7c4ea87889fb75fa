"""The VMS's cameras, and who may do what with them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from services.simulators.http import Refused, Request

Access = Literal["all", "watch"]
ACCESSES: tuple[Access, Access] = ("all", "watch")

_NO_CAPS = {"can_be_triggered": False, "can_record": False, "can_snapshot": False, "is_periodic": False}
_BUILT_IN: tuple[dict[str, Any], ...] = (
    {
        "caps": {**_NO_CAPS, "can_record": True, "can_snapshot": True},
        "generate_images": False,
        "name": "motion",
        "notify": True,
        "receive": True,
        "record": True,
        "snapshot": True,
    },
    {"caps": _NO_CAPS, "generate_images": False, "name": "net", "notify": True, "receive": True},
    {
        "caps": {**_NO_CAPS, "can_snapshot": True, "is_periodic": True},
        "generate_images": False,
        "name": "snapshot",
        "notify": True,
        "period": 0,
        "receive": False,
        "snapshot": True,
    },
)
"""What a new camera has: the list in the vendor's "API: Working with events"."""


def custom_type(name: str) -> dict[str, Any]:
    return {"caps": dict(_NO_CAPS), "custom": True, "name": name, "notify": True, "receive": False}


@dataclass(kw_only=True)
class Camera:
    """A camera (the API also says channel). `types` are further event types, by name, with what they
    have that a custom one has not: `{"button": {"caps": {"can_be_triggered": True}}}`."""

    name: str
    camid: int
    title: str = ""
    timezone: str = "UTC"
    recording: bool = True
    created: str = "2021-09-01T00:00:00"
    meta: dict[str, str] = field(default_factory=dict)
    types: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: int = -1
    """Its number in the ledger."""

    def __post_init__(self) -> None:
        self.title = self.title or self.name
        further = self.types
        self.types = {kind["name"]: dict(kind) for kind in _BUILT_IN}
        for name, differing in further.items():
            kind = custom_type(name) | differing
            self.types[name] = kind | {"caps": _NO_CAPS | kind["caps"]}


@dataclass(frozen=True)
class Grant:
    """What a credential allows: `writes` needs access `all`."""

    scheme: Literal["Acc", "SI", "LKey"]
    cameras: Mapping[int, Camera]
    writes: bool


class Keys:
    """Makes the credentials and checks them.

    A token is base64 of a JSON object with what its holder needs to reach the VMS; `address` holds
    those of its keys that are the same for all. The same seed makes the same tokens again.
    """

    def __init__(self, cameras: Mapping[str, Camera], seed: int, address: Mapping[str, Any]) -> None:
        self._cameras = cameras
        self._seed = seed
        self._address = address
        self._generations: dict[tuple[str, str], int] = {}
        self._grants: dict[str, Grant] = {}
        self.license_key = f"v3.{self._secret('license')}"
        by_camid = {camera.camid: camera for camera in cameras.values()}
        if len(by_camid) < len(cameras):
            raise ValueError("two cameras have the same camid")
        self._grants[f"LKey {self.license_key}"] = Grant("LKey", by_camid, writes=False)
        for camera in cameras.values():
            for access in ACCESSES:
                only = {camera.camid: camera}
                self._grants[f"Acc {self.token(camera.name, access)}"] = Grant("Acc", only, access == "all")

    def token(self, camera: str, access: Access) -> str:
        chosen = self._cameras[camera]
        generation = self._generations.get((camera, access), 0)
        about = {"camid": chosen.camid, "cmngrid": chosen.camid + 437, "access": access}
        return self._encode(about, "share", f"{camera} {access} {generation}")

    def group_token(self, cameras: tuple[str, ...], access: Access) -> str:
        """A group's token names no camera."""
        token = self._encode({"access": access}, "group", " ".join((access, *cameras)))
        chosen = {self._cameras[name].camid: self._cameras[name] for name in cameras}
        self._grants[f"SI {token}"] = Grant("SI", chosen, access == "all")
        return token

    def rotate(self, camera: str, access: Access) -> str:
        """Replace a token; the one before is not valid from now on."""
        grant = self._grants.pop(f"Acc {self.token(camera, access)}")
        self._generations[camera, access] = self._generations.get((camera, access), 0) + 1
        token = self.token(camera, access)
        self._grants[f"Acc {token}"] = grant
        return token

    def whose(self, request: Request) -> str | None:
        """The camera whose own token the request has."""
        grant = self._grants.get(request.authorization)
        if grant is None or grant.scheme != "Acc":
            return None
        return next(iter(grant.cameras.values())).name

    def grant(self, request: Request, *, writes: bool = False) -> Grant:
        """What a camera's or group's token allows. Raises `Refused`: 401 for any other credential,
        403 for a token that only watches where something is to be written."""
        grant = self._grants.get(request.authorization)
        if grant is None or grant.scheme == "LKey":
            raise Refused(401, "not authorized: a valid camera or group token is needed")
        if writes and not grant.writes:
            raise Refused(403, "the token's access is 'watch', this needs 'all'")
        return grant

    def camera(self, request: Request, camid: str, *, writes: bool = False) -> Camera:
        """The camera of this number, if the request's token covers it; else 403."""
        grant = self.grant(request, writes=writes)
        camera = grant.cameras.get(int(camid)) if camid.isascii() and camid.isdigit() else None
        if camera is None:
            raise Refused(403, f"camera {camid[:20]} is not one of this token's")
        return camera

    def own_camera(self, request: Request, *, writes: bool = False) -> Camera:
        """The camera whose own token this is, for calls that name none."""
        grant = self.grant(request, writes=writes)
        if grant.scheme != "Acc":
            raise Refused(401, "not authorized: a camera's access token is needed")
        return next(iter(grant.cameras.values()))

    def account(self, request: Request) -> None:
        """Only the license key passes."""
        grant = self._grants.get(request.authorization)
        if grant is None or grant.scheme != "LKey":
            raise Refused(401, "not authorized: the license key is needed")

    def _secret(self, what: str) -> str:
        return hashlib.sha256(f"{self._seed} {what}".encode()).hexdigest()[:32]

    def _encode(self, about: dict[str, Any], kind: str, what: str) -> str:
        whole = about | {"token": f"{kind}.{self._secret(what)}"} | dict(self._address)
        return base64.b64encode(orjson.dumps(whole)).decode()
