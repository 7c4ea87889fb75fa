"""What the gateway says of itself, for tools and panels that look for their recipient (clause 12.11)."""

from __future__ import annotations

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Apdu, Bits, Confirmed, Enumerated, ObjectId, Unconfirmed
from services.adapters.bacnet.names import DEVICE, PROPERTY, WILDCARD

_NO_SEGMENTATION = 3
_SERVICES = 41
_UNKNOWN_OBJECT, _UNKNOWN_PROPERTY = (1, 31), (2, 32)
_ALL, _REQUIRED, _OPTIONAL = 8, 105, 80


class Ourselves:
    """A device object with what it must have."""

    def __init__(self, instance: int) -> None:
        self._id = ObjectId(DEVICE, instance)
        spoken = {
            Confirmed.COV_NOTIFICATION, Confirmed.EVENT_NOTIFICATION, Confirmed.READ_PROPERTY,
            Confirmed.READ_PROPERTY_MULTIPLE,
        }  # fmt: skip
        # Bits of BACnetServicesSupported: confirmed services by number, then I-Am 26, unconfirmed COV 28
        # and event 29, Who-Is 34.
        services = Bits(each in {*spoken, 26, 28, 29, 34} for each in range(_SERVICES))
        said = {
            "object-identifier": [self._id],
            "object-name": [f"tocsin-{instance}"],
            "object-type": [Enumerated(DEVICE)],
            "system-status": [Enumerated(0)],
            "vendor-name": ["Tocsin"],
            "vendor-identifier": [0],
            "model-name": ["Tocsin gateway"],
            "firmware-revision": ["1"],
            "application-software-version": ["1"],
            "protocol-version": [1],
            "protocol-revision": [14],
            "protocol-services-supported": [services],
            "protocol-object-types-supported": [Bits(each == DEVICE for each in range(60))],
            "object-list": [self._id],
            "max-apdu-length-accepted": [codec.MAX_APDU],
            "segmentation-supported": [Enumerated(_NO_SEGMENTATION)],
            "apdu-timeout": [3000],
            "number-of-apdu-retries": [2],
            "device-address-binding": [],
            "database-revision": [1],
        }
        self._said = {
            PROPERTY[name]: b"".join(codec.application(value) for value in values)  # type: ignore[attr-defined]
            for name, values in said.items()
        }

    def is_meant(self, apdu: Apdu) -> bool:
        """Whether a Who-Is asks for us. Raises `Malformed`."""
        return apdu.service == Unconfirmed.WHO_IS and codec.who_is_for(apdu.data, self._id.instance)

    def i_am(self) -> bytes:
        said = codec.IAm(self._id, codec.MAX_APDU, _NO_SEGMENTATION, 0)
        return codec.unconfirmed(Unconfirmed.I_AM, said.encode())

    def answer(self, apdu: Apdu) -> bytes:
        """To ReadProperty and ReadPropertyMultiple. Raises `Malformed`."""
        if apdu.service == Confirmed.READ_PROPERTY:
            wanted = codec.Reference.decode(apdu.data)
            found = self._read(wanted.object, wanted.property)
            if isinstance(found, tuple):
                return codec.error(apdu.invoke, apdu.service, *found)
            meant = codec.Reference(self._id, wanted.property)
            return codec.complex_ack(apdu.invoke, apdu.service, codec.encode_read(meant, found))
        made: dict[ObjectId, dict[int, bytes | tuple[int, int]]] = {}
        for wanted in codec.decode_multiple_request(apdu.data):
            object_ = self._id if wanted.object == ObjectId(DEVICE, WILDCARD) else wanted.object
            every = wanted.property in (_ALL, _REQUIRED)
            for number in self._said if every else () if wanted.property == _OPTIONAL else (wanted.property,):
                made.setdefault(object_, {})[number] = self._read(object_, number)
        data = b"".join(codec.encode_multiple_result(object_, results) for object_, results in made.items())
        if len(data) > codec.MAX_APDU - 3:
            return codec.abort(apdu.invoke, 4)
        return codec.complex_ack(apdu.invoke, apdu.service, data)

    def _read(self, object_: ObjectId, property_: int) -> bytes | tuple[int, int]:
        if object_ not in (self._id, ObjectId(DEVICE, WILDCARD)):
            return _UNKNOWN_OBJECT
        return self._said.get(property_, _UNKNOWN_PROPERTY)
