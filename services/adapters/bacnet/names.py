"""Numbers of BACnet and their names (ANSI/ASHRAE 135, clause 21)."""

from __future__ import annotations

OBJECT_TYPE = {
    0: "analog-input", 1: "analog-output", 2: "analog-value", 3: "binary-input", 4: "binary-output",
    5: "binary-value", 8: "device", 9: "event-enrollment", 13: "multi-state-input", 14: "multi-state-output",
    15: "notification-class", 19: "multi-state-value", 21: "life-safety-point", 22: "life-safety-zone",
    23: "accumulator", 24: "pulse-converter", 28: "load-control", 30: "access-door", 33: "access-point",
    36: "access-zone", 37: "credential-data-input", 39: "bitstring-value", 40: "characterstring-value",
    45: "integer-value", 46: "large-analog-value", 48: "positive-integer-value", 52: "alert-enrollment",
    59: "lift",
}  # fmt: skip
OBJECT_NUMBER = {name: number for number, name in OBJECT_TYPE.items()}
DEVICE = 8
ENROLLMENT = 9
LIFE_SAFETY = frozenset({21, 22})
BINARY = frozenset({3, 4, 5})
ANALOG = frozenset({0, 1, 2, 23, 24, 45, 46, 48})
MULTI_STATE = frozenset({13, 14, 19})
WILDCARD = 4_194_303
"""A device that is asked about this instance answers for itself (15.5.2)."""

PROPERTY = {
    "acked-transitions": 0, "alarm-value": 6, "apdu-timeout": 11, "application-software-version": 12,
    "description": 28, "device-address-binding": 30, "event-state": 36, "event-type": 37,
    "firmware-revision": 44, "local-date": 56, "local-time": 57, "max-apdu-length-accepted": 62,
    "model-name": 70, "notification-class": 17, "number-of-apdu-retries": 73, "object-identifier": 75,
    "object-list": 76, "object-name": 77, "object-type": 79, "out-of-service": 81, "present-value": 85,
    "protocol-object-types-supported": 96, "protocol-services-supported": 97, "protocol-version": 98,
    "reliability": 103, "segmentation-supported": 107, "status-flags": 111, "system-status": 112,
    "vendor-identifier": 120, "vendor-name": 121, "event-time-stamps": 130, "protocol-revision": 139,
    "database-revision": 155, "direct-reading": 156, "maintenance-required": 158, "mode": 160,
    "operation-expected": 161, "silenced": 163, "tracking-value": 164, "door-alarm-state": 226,
    "door-status": 231, "lock-status": 233,
}  # fmt: skip
PROPERTY_NAME = {number: name for name, number in PROPERTY.items()}

EVENT_STATE = {
    0: "normal",
    1: "fault",
    2: "offnormal",
    3: "high-limit",
    4: "low-limit",
    5: "life-safety-alarm",
}
EVENT_TYPE = {
    0: "change-of-bitstring", 1: "change-of-state", 2: "change-of-value", 3: "command-failure",
    4: "floating-limit", 5: "out-of-range", 8: "change-of-life-safety", 9: "extended", 10: "buffer-ready",
    11: "unsigned-range", 13: "access-event", 14: "double-out-of-range", 15: "signed-out-of-range",
    16: "unsigned-out-of-range", 17: "change-of-characterstring", 18: "change-of-status-flags",
    19: "change-of-reliability", 20: "none", 21: "change-of-discrete-value", 22: "change-of-timer",
}  # fmt: skip
NOTIFY_TYPE = {0: "alarm", 1: "event", 2: "ack-notification"}

LIFE_SAFETY_STATE = {
    0: "quiet", 1: "pre-alarm", 2: "alarm", 3: "fault", 4: "fault-pre-alarm", 5: "fault-alarm",
    6: "not-ready",
    7: "active", 8: "tamper", 9: "test-alarm", 10: "test-active", 11: "test-fault", 12: "test-fault-alarm",
    13: "holdup", 14: "duress", 15: "tamper-alarm", 16: "abnormal", 17: "emergency-power", 18: "delayed",
    19: "blocked", 20: "local-alarm", 21: "general-alarm", 22: "supervisory", 23: "test-supervisory",
}  # fmt: skip
LIFE_SAFETY_MODE = {
    0: "off", 1: "on", 2: "test", 3: "manned", 4: "unmanned", 5: "armed", 6: "disarmed", 7: "prearmed",
    8: "slow", 9: "fast", 10: "disconnected", 11: "enabled", 12: "disabled",
    13: "automatic-release-disabled", 14: "default",
}  # fmt: skip
RELIABILITY = {
    0: "no-fault-detected", 1: "no-sensor", 2: "over-range", 3: "under-range", 4: "open-loop",
    5: "shorted-loop", 6: "no-output", 7: "unreliable-other", 8: "process-error", 9: "multi-state-fault",
    10: "configuration-error", 12: "communication-failure", 13: "member-fault", 14: "monitored-object-fault",
    15: "tripped", 16: "lamp-failure", 17: "activation-failure", 24: "referenced-object-fault",
    25: "multi-state-out-of-range",
}  # fmt: skip
STATUS_FLAGS = ("in-alarm", "fault", "overridden", "out-of-service")
ERROR_CLASS = {
    0: "device",
    1: "object",
    2: "property",
    3: "resources",
    4: "security",
    5: "services",
    7: "communication",
}
ERROR_CODE = {
    0: "other", 16: "missing-required-parameter", 25: "operational-problem", 27: "read-access-denied",
    29: "service-request-denied", 30: "timeout", 31: "unknown-object", 32: "unknown-property",
    36: "unsupported-object-type", 40: "write-access-denied", 37: "value-out-of-range",
    18: "no-space-for-object", 79: "unknown-subscription",
    19: "no-space-to-add-list-element", 42: "invalid-array-index", 43: "cov-subscription-failed",
    44: "not-cov-property", 45: "optional-functionality-not-supported", 50: "property-is-not-an-array",
}  # fmt: skip
REJECT = {
    0: "other", 1: "buffer-overflow", 2: "inconsistent-parameters", 3: "invalid-parameter-data-type",
    4: "invalid-tag", 5: "missing-required-parameter", 6: "parameter-out-of-range", 7: "too-many-arguments",
    8: "undefined-enumeration", 9: "unrecognized-service",
}  # fmt: skip
ABORT = {
    0: "other", 1: "buffer-overflow", 2: "invalid-apdu-in-this-state", 3: "preempted-by-higher-priority-task",
    4: "segmentation-not-supported", 5: "security-error", 6: "insufficient-security", 9: "out-of-resources",
    11: "apdu-too-long",
}  # fmt: skip
