"""The site file: every device, its sensors, the cameras that see them, and who is told.

`load` reads it and raises `SiteError` with one `Mistake` (file, line, column, problem, remedy) for
each thing that is wrong. `Follower` follows changes and keeps the last good one.
"""

from typing import TYPE_CHECKING, Any

from shared.events import Slug
from shared.site.follow import Follower
from shared.site.mistakes import Mistake, SiteError, Unjudged
from shared.site.model import (
    AnyDevice,
    AnySensor,
    AnySettings,
    BaseUrl,
    Camera,
    CameraId,
    CameraRef,
    CameraVms,
    CamioTarget,
    Device,
    Duration,
    Kinds,
    Model,
    Offset,
    Place,
    Placed,
    Room,
    Schedule,
    ScheduleId,
    SecretName,
    SecretRef,
    Select,
    Sensor,
    SensorPattern,
    Settings,
    Severities,
    Site,
    Span,
    Suppress,
    Target,
    Targets,
    Timezone,
    VmsTarget,
    did_you_mean,
    expand_kinds,
    is_loopback,
    mistake,
)

if TYPE_CHECKING:
    from shared.site.checking import load

__all__ = [
    "AnyDevice",
    "AnySensor",
    "AnySettings",
    "BaseUrl",
    "Camera",
    "CameraId",
    "CameraRef",
    "CameraVms",
    "CamioTarget",
    "Device",
    "Duration",
    "Follower",
    "Kinds",
    "Mistake",
    "Model",
    "Offset",
    "Place",
    "Placed",
    "Room",
    "Schedule",
    "ScheduleId",
    "SecretName",
    "SecretRef",
    "Select",
    "Sensor",
    "SensorPattern",
    "Settings",
    "Severities",
    "Site",
    "SiteError",
    "Slug",
    "Span",
    "Suppress",
    "Target",
    "Targets",
    "Timezone",
    "Unjudged",
    "VmsTarget",
    "did_you_mean",
    "expand_kinds",
    "is_loopback",
    "load",
    "mistake",
]


def __getattr__(name: str) -> Any:
    # Checking a file takes pydantic, which a service does without.
    if name == "load":
        from shared.site.checking import load  # noqa: PLC0415

        return load
    raise AttributeError(name)
