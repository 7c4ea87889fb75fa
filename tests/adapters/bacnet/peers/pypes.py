# mypy: ignore-errors
"""A fire panel made with bacpypes3: a life-safety point that reports by itself, and event enrollments.

The state machine of events, the reports of faults, the algorithms out-of-range and change-of-state, encoding,
sending, repeating and COV are bacpypes3's. It leaves the change-of-life-safety algorithm (13.3.8) blank and
does not answer GetEventInformation: these are here, made of its classes. It takes priority and ack-required
of a notification class in a wrong order, so a test should not look at them.
"""

from bacpypes3.apdu import GetEventInformationACK, SimpleAckPDU
from bacpypes3.basetypes import (
    Destination,
    DeviceAddress,
    DeviceObjectPropertyReference,
    EngineeringUnits,
    EventParameter,
    EventParameterChangeOfState,
    EventParameterOutOfRange,
    EventState,
    EventType,
    GetEventInformationEventSummary,
    LifeSafetyMode,
    LifeSafetyState,
    NotificationParameters,
    NotificationParametersChangeOfLifeSafety,
    PropertyStates,
    Recipient,
    Reliability,
    TimeStamp,
)
from bacpypes3.ipv4.app import NormalApplication
from bacpypes3.local.analog import AnalogInputObject
from bacpypes3.local.binary import BinaryInputObject
from bacpypes3.local.cov import GenericCriteria
from bacpypes3.local.device import DeviceObject
from bacpypes3.local.event import EventAlgorithm, EventEnrollmentObject
from bacpypes3.local.object import Object
from bacpypes3.object import LifeSafetyPointObject, NotificationClassObject
from bacpypes3.pdu import IPv4Address

CLASS = 7
_NEVER = {"time": (255, 255, 255, 255)}
_OPEN_DAY = {"fromTime": (0, 0, 0, 0), "toTime": (23, 59, 59, 99)}


def _outcome(done):
    """`ack`, or what else became of a request."""
    if done.cancelled():
        return "cancelled"
    answer = done.exception() or done.result()
    return "ack" if isinstance(answer, SimpleAckPDU) else str(answer)


class ChangeOfLifeSafety(EventAlgorithm):
    """13.3.8, without delays and without reports of a changed mode."""

    event_type = EventType.changeOfLifeSafety

    def __init__(self, monitoring_object, monitored_object):
        super().__init__(monitoring_object, monitored_object)
        self.bind(
            pMonitoredValue=(monitored_object, "trackingValue"),
            pStatusFlags=(monitored_object, "statusFlags"),
            pTimeDelay=0,
            pTimeDelayNormal=0,
        )

    def execute(self):
        point, value = self.monitored_object, self.pMonitoredValue
        if value in point.lifeSafetyAlarmValues:
            wanted = EventState.lifeSafetyAlarm
        elif value in point.alarmValues:
            wanted = EventState.offnormal
        else:
            wanted = EventState.normal
        self.state_transition(None if wanted == self._current_state else wanted)

    def event_notification_parameters(self):
        point = self.monitored_object
        return NotificationParameters(
            changeOfLifeSafety=NotificationParametersChangeOfLifeSafety(
                newState=self.pMonitoredValue,
                newMode=point.mode,
                statusFlags=self.pStatusFlags,
                operationExpected=point.operationExpected,
            )
        )


class LifeSafetyPoint(Object, LifeSafetyPointObject):
    """With intrinsic reporting, and subscriptions to its changes."""

    _cov_criteria = GenericCriteria

    def __init__(self, **said):
        super().__init__(**said)
        self._event_algorithm = ChangeOfLifeSafety(None, self)


class Panel(NormalApplication):
    """`told` holds what became of each notification: its to-state, and the answer or the error."""

    def __init__(self, port, instance=2001):
        own = DeviceObject(
            objectIdentifier=("device", instance), objectName="panel", vendorIdentifier=999,
            apduTimeout=500, numberOfApduRetries=20,
        )  # fmt: skip
        super().__init__(own, IPv4Address(f"127.0.0.1:{port}"))
        self.told = []
        self.class_ = NotificationClassObject(
            objectIdentifier=("notification-class", CLASS), objectName="alarms", notificationClass=CLASS,
            priority=[3, 3, 3], ackRequired=[1, 1, 0], recipientList=[],
        )  # fmt: skip
        reports = {
            "notificationClass": CLASS, "eventEnable": [1, 1, 1], "ackedTransitions": [1, 1, 1],
            "notifyType": "alarm", "eventTimeStamps": [TimeStamp(**_NEVER)] * 3,
            "eventDetectionEnable": True, "eventAlgorithmInhibit": False,
            "eventMessageTexts": ["", "", ""],
        }  # fmt: skip
        healthy = {
            "eventState": "normal", "outOfService": False, "reliability": Reliability.noFaultDetected,
            "statusFlags": [0, 0, 0, 0],
        }  # fmt: skip
        self.point = LifeSafetyPoint(
            objectIdentifier=("life-safety-point", 7), objectName="detector", presentValue="quiet",
            trackingValue="quiet", mode=LifeSafetyMode.on, acceptedModes=["on"], silenced="unsilenced",
            operationExpected="none", alarmValues=["pre-alarm"],
            lifeSafetyAlarmValues=["alarm"], faultValues=[], timeDelay=0, **healthy, **reports,
        )  # fmt: skip
        self.level = AnalogInputObject(
            objectIdentifier=("analog-input", 5), objectName="level", presentValue=3.0, covIncrement=0.5,
            units=EngineeringUnits("millimeters"), **healthy,
        )  # fmt: skip
        self.contact = BinaryInputObject(
            objectIdentifier=("binary-input", 3), objectName="contact", presentValue="inactive",
            polarity="normal", **healthy,
        )  # fmt: skip
        watches = {**reports, "eventState": "normal", "reliability": Reliability.noFaultDetected,
                   "statusFlags": [0, 0, 0, 0]}  # fmt: skip
        self.too_high = EventEnrollmentObject(
            objectIdentifier=("event-enrollment", 5), objectName="too high",
            eventType="out-of-range",
            eventParameters=EventParameter(
                outOfRange=EventParameterOutOfRange(timeDelay=0, lowLimit=-1.0, highLimit=12.5, deadband=1.5)
            ),
            objectPropertyReference=DeviceObjectPropertyReference(
                objectIdentifier=("analog-input", 5), propertyIdentifier="present-value"
            ),
            **watches,
        )  # fmt: skip
        self.closed = EventEnrollmentObject(
            objectIdentifier=("event-enrollment", 3), objectName="closed", eventType="change-of-state",
            eventParameters=EventParameter(
                changeOfState=EventParameterChangeOfState(
                    timeDelay=0, listOfValues=[PropertyStates(binaryValue="active")]
                )
            ),
            objectPropertyReference=DeviceObjectPropertyReference(
                objectIdentifier=("binary-input", 3), propertyIdentifier="present-value"
            ),
            **watches,
        )  # fmt: skip
        for each in (self.class_, self.point, self.level, self.contact, self.too_high, self.closed):
            self.add_object(each)

    def report_to(self, port):
        """Enter this port of the machine as the recipient of all alarms."""
        address = DeviceAddress(networkNumber=0, macAddress=bytes((127, 0, 0, 1)) + port.to_bytes(2, "big"))
        self.class_.recipientList = [
            Destination(
                validDays=[1] * 7, recipient=Recipient(address=address), processIdentifier=5,
                issueConfirmedNotifications=True, transitions=[1, 1, 1], **_OPEN_DAY,
            )
        ]  # fmt: skip

    def sense(self, state, operation="none"):
        """The detector is in this life-safety state."""
        self.point.operationExpected = operation
        self.point.presentValue = LifeSafetyState(state)
        self.point.trackingValue = LifeSafetyState(state)

    def fail(self, reliability):
        """The detector's reliability is this."""
        self.point.reliability = Reliability(reliability)

    def request(self, apdu):
        answer = super().request(apdu)
        if apdu.__class__.__name__ == "ConfirmedEventNotificationRequest":
            to_state = str(apdu.toState)
            answer.add_done_callback(lambda done: self.told.append((to_state, _outcome(done))))
        return answer

    async def do_GetEventInformationRequest(self, apdu):  # noqa: N802
        """One alarm an answer, so that the other side has to ask on."""
        standing = [
            each
            for each in self.objectIdentifier.values()
            if getattr(each, "eventTimeStamps", None) and each.eventState != EventState.normal
        ]
        after = apdu.lastReceivedObjectIdentifier
        names = [each.objectIdentifier for each in standing]
        first = names.index(after) + 1 if after in names else 0
        summaries = [
            GetEventInformationEventSummary(
                objectIdentifier=each.objectIdentifier, eventState=each.eventState,
                acknowledgedTransitions=each.ackedTransitions, eventTimeStamps=list(each.eventTimeStamps),
                notifyType=each.notifyType, eventEnable=each.eventEnable,
                eventPriorities=list(self.class_.priority),
            )
            for each in standing[first : first + 1]
        ]  # fmt: skip
        await self.response(
            GetEventInformationACK(
                listOfEventSummaries=summaries, moreEvents=len(standing) > first + 1, context=apdu
            )
        )
