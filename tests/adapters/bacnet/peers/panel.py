# mypy: ignore-errors
"""A fire panel made with bac-py: a life-safety point with intrinsic reporting, whose notification class has
the gateway as its recipient. Arguments: its port, the gateway's port. Lines on stdin set the point's state.
"""

import asyncio
import json
import sys

from bac_py.app.application import BACnetApplication, DeviceConfig
from bac_py.app.server import DefaultServerHandlers
from bac_py.network.address import BACnetAddress
from bac_py.objects.device import DeviceObject
from bac_py.objects.life_safety import LifeSafetyPointObject
from bac_py.objects.notification import NotificationClassObject
from bac_py.types.constructed import BACnetDestination, BACnetRecipient
from bac_py.types.enums import LifeSafetyMode, LifeSafetyState, PropertyIdentifier
from bac_py.types.primitives import BACnetTime, BitString


async def main(port: int, gateway: int) -> None:
    app = BACnetApplication(
        DeviceConfig(instance_number=2001, interface="127.0.0.1", port=port, apdu_timeout=500, apdu_retries=3)
    )
    device = DeviceObject(2001, object_name="panel", vendor_name="", vendor_identifier=0, model_name="")
    app.object_db.add(device)
    to = BACnetAddress(None, bytes((127, 0, 0, 1)) + gateway.to_bytes(2, "big"))
    app.object_db.add(
        NotificationClassObject(
            7,
            object_name="alarms",
            notification_class=7,
            priority=[10, 20, 30],
            ack_required=[True, True, False],
            recipient_list=[
                BACnetDestination(
                    BitString(b"\xfe", 1), BACnetTime(0, 0, 0, 0), BACnetTime(23, 59, 59, 99),
                    BACnetRecipient(address=to), 5, True, BitString(b"\xe0", 5),
                )
            ],
        )
    )  # fmt: skip
    point = LifeSafetyPointObject(
        7, object_name="detector", accepted_modes=[LifeSafetyMode.ON], notification_class=7,
        alarm_values=[LifeSafetyState.ALARM], life_safety_alarm_values=[LifeSafetyState.ALARM],
        event_enable=[True, True, True], notify_type=0,
    )  # fmt: skip
    app.object_db.add(point)
    DefaultServerHandlers(app, app.object_db, device).register()
    await app.start()
    print(json.dumps({"listening": True}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        for each in (PropertyIdentifier.TRACKING_VALUE, PropertyIdentifier.PRESENT_VALUE):
            point._properties[each] = LifeSafetyState[line.strip()]


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
