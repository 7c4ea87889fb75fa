"""A connection to one or more Modbus devices, on which one request at a time is under way.

Frames, requests and answers are pymodbus's. It is used by its transaction layer, not by its clients:
those swallow why a connection failed, read TLS records as frames (a frame may be split over several, or
share one), and do not notice at once that the other side is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import ssl
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest
from pymodbus.transaction import TransactionManager
from pymodbus.transport import CommParams, CommType
from pymodbus.transport.serialtransport import create_serial_connection

from services.adapters.modbus.codec import ExceptionCode, Place, Table
from services.adapters.modbus.config import SCHEMES, Device
from shared.model import SecretStr
from shared.reaching import unreached
from shared.site import SecretRef

# What it has to say is said here, once and in words that help.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL + 1)

_REQUESTS: dict[Table, type[ModbusPDU]] = {
    Table.COIL: ReadCoilsRequest,
    Table.DISCRETE: ReadDiscreteInputsRequest,
    Table.HOLDING: ReadHoldingRegistersRequest,
    Table.INPUT: ReadInputRegistersRequest,
}
_UNASKED = 4096
"""Bytes that may come beside what was asked for until the next request."""
_SILENT_CONNECTION = 3
"""Requests in a row without any answer, after which a TCP connection is made anew: its other end may
have gone without a word."""
_PAUSES = (0.25, 10.0)


class Trouble(Exception):
    """No values could be had; the text says why and what to look at. Holds no secret."""


class NoLine(Trouble):
    """There is no connection."""


class NoAnswer(Trouble):
    """The unit does not answer, or not in a way that can be understood."""


class Refused(Trouble):
    """The unit refuses a request (an exception response)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Endpoint:
    """All that decides a connection: devices with the same one share it."""

    url: str
    baud: int = 0
    parity: str = ""
    stop_bits: int = 0
    ca_file: str | None = None
    server_name: str | None = None
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, device: Device, secret: Callable[[SecretRef], SecretStr]) -> Endpoint:
        """Raises `shared.secrets.MissingSecret`."""
        if device.scheme == "rtu":
            line = device.serial
            return cls(device.url, line.baud, line.parity, line.stop_bits)
        login = device.credentials
        return cls(
            device.url,
            ca_file=device.ca_file,
            server_name=device.server_name,
            certificate=secret(login.certificate).get_secret_value() if login else None,
            key=secret(login.key).get_secret_value() if login and login.key else None,
        )

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or SCHEMES[parts.scheme] or 0

    @property
    def port(self) -> str:
        """Path of the serial port."""
        return urlsplit(self.url).path

    @property
    def where(self) -> str:
        """For people."""
        return self.port if self.scheme == "rtu" else "{}:{}".format(*self.address)

    @property
    def rtu(self) -> bool:
        """Whether frames are RTU's, which have no transaction id: a late answer is like a right one."""
        return self.scheme.startswith("rtu")

    @property
    def silence(self) -> float:
        """Seconds between two frames on a serial line: 3.5 characters of 11 bits, and 1.75 ms above
        19200 baud (Serial Line V1.02, 2.5.1.1)."""
        if self.scheme != "rtu":
            return 0.0
        return 0.00175 if self.baud > 19_200 else 3.5 * 11 / self.baud

    def context(self) -> ssl.SSLContext:
        """For Modbus Security: TLS 1.2 or newer, both sides authenticated. Raises OSError."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            with _in_memory(f"{self.certificate}\n{self.key or ''}") as path:
                context.load_cert_chain(path)
        return context


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path to the text, which touches no disk: the ssl module loads keys from paths only."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _Wire(TransactionManager):
    """pymodbus's transactions on one connection, which is never renewed."""

    def __init__(self, endpoint: Endpoint) -> None:
        kind = {"rtu": CommType.SERIAL, "tls": CommType.TLS}.get(endpoint.scheme, CommType.TCP)
        framer = FramerRTU if endpoint.rtu else FramerSocket
        params = CommParams(comm_name="modbus", comm_type=kind, reconnect_delay=0)
        super().__init__(params, framer(DecodePDU(False)), 0, False, None, None, None)
        self._mbap = not endpoint.rtu
        self.connected = asyncio.Event()
        self.heard = b""
        """The beginning of what came since the last request."""
        self._count = 0
        self._lost: Exception = ConnectionResetError()

    async def ask(self, request: ModbusPDU, patience: float) -> ModbusPDU:
        """Raises TimeoutError, ConnectionError, or NoAnswer for what cannot be understood."""
        self.heard, self._count = b"", 0
        if not self.transport:
            raise self._lost
        request.transaction_id = self.getNextTID()
        self.response_future = asyncio.get_running_loop().create_future()
        self.pdu_send(request)
        async with asyncio.timeout(patience):
            answer: ModbusPDU = await self.response_future
        if self._mbap and answer.transaction_id != request.transaction_id:
            raise NoAnswer("it answers another transaction than the one asked for")
        return answer

    def speaks(self) -> int | None:
        """The unit that a frame of Modbus TCP came from, if what came was one."""
        if self._mbap and len(self.heard) >= 8 and self.heard[2:5] == b"\0\0\0":
            return self.heard[6]
        return None

    def data_received(self, data: bytes) -> None:
        self.heard = self.heard or data[:16]
        self._count += len(data)
        if self._count > _UNASKED:
            self._fail(NoAnswer("it sends without being asked"))
            self.close()
            return
        try:
            super().data_received(data)
        except Exception as error:  # whatever the library makes of garbage
            self.recv_buffer = b""
            self._fail(NoAnswer(f"its answer cannot be understood ({error})"))

    def callback_connected(self) -> None:
        self.connected.set()

    def callback_disconnected(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError()
        self._fail(self._lost)

    def _fail(self, error: Exception) -> None:
        if not self.response_future.done():
            self.response_future.set_exception(error)
            self.response_future.exception()  # it is no error that nobody waits for it


class Line:
    """The connection to an endpoint, made when it is needed and kept."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._turn = asyncio.Lock()
        self._wire: _Wire | None = None
        self._unanswered = 0
        self._stale = False
        self._pause = 0.0
        self._again = 0.0
        self._why = ""

    async def read(self, unit: int, block: Place, *, patience: float, pause: float = 0.0) -> list[int]:
        """The bits or registers of a block. Raises `Trouble`."""
        async with self._turn:
            wire = await self._connected(patience)
            if rest := max(pause, self.endpoint.silence):
                await asyncio.sleep(rest)
            request = _REQUESTS[block.table](address=block.address, count=block.count, dev_id=unit)
            self._stale = True
            try:
                answer = await wire.ask(request, patience)
            except TimeoutError:
                self._unanswered += 1
                raise NoAnswer(self._silence(wire, unit, patience)) from None
            except OSError as error:
                self._drop()
                raise NoLine(explain(error, self.endpoint)) from None
            except NoAnswer as error:
                raise NoAnswer(f"unit {unit} at {self.endpoint.where}: {error}") from None
            self._stale = False
            self._unanswered = 0
            return _values(answer, unit, block, self.endpoint)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _drop(self) -> None:
        self.close()
        self._stale = False
        self._unanswered = 0

    async def _connected(self, patience: float) -> _Wire:
        """The connection, on which nothing is under way."""
        if self._wire is not None and not self._wire.transport:
            self._drop()
        if self._wire is not None and self._stale and self.endpoint.rtu:
            # What was asked for before may still come, and RTU could not tell it from the next answer.
            if self.endpoint.scheme == "rtu":
                await asyncio.sleep(max(0.1, patience / 2))
                self._stale = False
            else:
                self._drop()
        if self._wire is not None and self._unanswered >= _SILENT_CONNECTION:
            self._drop()
        if self._wire is None:
            self._wire = await self._connect(patience)
        return self._wire

    async def _connect(self, patience: float) -> _Wire:
        loop = asyncio.get_running_loop()
        if loop.time() < self._again:
            raise NoLine(self._why)
        wire = _Wire(self.endpoint)
        try:
            async with asyncio.timeout(max(patience, 1.0)):
                await self._open(wire)
        except Exception as error:
            wire.close()
            self._pause = min(_PAUSES[1], max(_PAUSES[0], self._pause * 2))
            self._again = loop.time() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
            self._why = explain(error, self.endpoint)
            raise NoLine(self._why) from None
        except asyncio.CancelledError:
            wire.close()
            raise
        self._pause = self._again = 0.0
        return wire

    async def _open(self, wire: _Wire) -> None:
        loop = asyncio.get_running_loop()
        endpoint = self.endpoint
        if endpoint.scheme == "rtu":
            wire.transport, _ = await create_serial_connection(
                loop,
                lambda: wire,
                endpoint.port,
                baudrate=endpoint.baud,
                bytesize=8,
                parity={"even": "E", "odd": "O", "none": "N"}[endpoint.parity],
                stopbits=endpoint.stop_bits,
                timeout=0,
            )
            await wire.connected.wait()
            return
        host, port = endpoint.address
        if endpoint.scheme == "tls":
            context = await asyncio.to_thread(endpoint.context)
            name = endpoint.server_name or host
            await loop.create_connection(lambda: wire, host, port, ssl=context, server_hostname=name)
        else:
            await loop.create_connection(lambda: wire, host, port)

    def _silence(self, wire: _Wire, unit: int, patience: float) -> str:
        where = self.endpoint.where
        other = wire.speaks()
        if other is not None and other != unit:
            return f"{where} answers as unit {other}, not {unit}: set unit: {other}"
        if other is not None:
            return f"unit {unit} at {where} answers out of turn, or not to the end: look at the device"
        if wire.heard and self.endpoint.rtu:
            return (
                f"what came from unit {unit} at {where} is no frame: look at baud, parity, wiring and "
                "termination, and whether two devices have this unit id"
            )
        if wire.heard:
            return (
                f"what came from unit {unit} at {where} is not Modbus TCP: is it rtu+tcp, or another service?"
            )
        hint = "wrong unit id, or the device is off"
        if self.endpoint.scheme == "rtu":
            hint += "; or baud, parity or wiring (A and B swapped) are wrong"
        elif self.endpoint.scheme == "rtu+tcp":
            hint += "; or it speaks Modbus TCP (tcp://)"
        else:
            hint += "; or it is a serial device server without Modbus (rtu+tcp://)"
        return f"unit {unit} at {where} does not answer within {patience:g} s: {hint}"


def _values(answer: ModbusPDU, unit: int, block: Place, endpoint: Endpoint) -> list[int]:
    """What was asked for. Raises `Refused` or `NoAnswer`."""
    if isinstance(answer, ExceptionResponse):
        raise Refused(
            answer.exception_code, refusal_in_words(answer.exception_code, unit, block, endpoint.where)
        )
    if answer.function_code != block.table.function:
        raise NoAnswer(
            f"unit {unit} at {endpoint.where} answered another request (function {answer.function_code}): "
            "is there a second master on the line?"
        )
    # Bits come in whole bytes, and an answer with another number of them is one to another request.
    wanted = (block.count + 7) // 8 * 8 if block.table.bits else block.count
    values = [int(value) for value in (answer.bits if block.table.bits else answer.registers)]
    if len(values) != wanted:
        raise NoAnswer(
            f"unit {unit} at {endpoint.where} sent {len(values)} values for {block}, not {wanted}: "
            "is there a second master on the line?"
        )
    return values[: block.count]


def refusal_in_words(code: int, unit: int, block: Place, where: str) -> str:
    """An exception response, for the one who has to mend it (V1.1b3, 7)."""
    who = f"unit {unit} at {where}"
    match code:
        case ExceptionCode.ILLEGAL_FUNCTION:
            return (
                f"{who} does not know function {block.table.function} ({block}): its values stand in another "
                "table (coil, discrete, input, holding)"
            )
        case ExceptionCode.ILLEGAL_ADDRESS:
            return (
                f"{who} has no {block} (illegal data address): look at the address, at first_address "
                "(manuals count from 1, the wire from 0), and at the table"
            )
        case ExceptionCode.ILLEGAL_VALUE:
            return f"{who} refuses {block} (illegal data value): lower max_registers or max_bits"
        case ExceptionCode.DEVICE_FAILURE:
            return f"{who} has failed at reading {block} (server device failure): look at the device"
        case ExceptionCode.ACKNOWLEDGE | ExceptionCode.BUSY:
            return f"{who} is busy: lengthen period or set pause"
        case ExceptionCode.PARITY:
            return f"{who} has a memory fault at {block} (memory parity error): look at the device"
        case ExceptionCode.GATEWAY_PATH:
            return f"{where} is a gateway and has no way to unit {unit}: look at the unit id and at its ports"
        case ExceptionCode.GATEWAY_TARGET:
            return (
                f"{where} is a gateway and unit {unit} behind it does not answer: wrong unit id, or the "
                "device is off or its line cut"
            )
    return f"{who} refuses {block} with exception {code}: see its manual"


def explain(error: BaseException, endpoint: Endpoint) -> str:
    """Why there is no connection, for the one who has to mend it. Holds no secret."""
    where = endpoint.where
    if endpoint.scheme == "rtu":
        return _explain_serial(error, endpoint)
    if said := unreached(error, where, there="whether Modbus is on there"):
        return said
    match error:
        case ssl.SSLCertVerificationError() if "mismatch" in str(error):
            return f"the certificate of {where} is for another name: set server_name to one that is in it"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not trusted ({error.verify_message}): name its CA as ca_file"
            )
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER":
            return f"{where} does not speak TLS: use tcp://, or its port of Modbus Security (802)"
        case ssl.SSLError() if "ALERT" in (error.reason or "") or "alert" in str(error):
            return f"{where} refuses our certificate ({error.reason}): look at credentials and its roles"
        case ssl.SSLError():
            return (
                f"TLS with {where} failed ({error.reason or error}): look at the certificates of both sides"
            )
        case FileNotFoundError():
            return f"there is no file {error.filename or endpoint.ca_file}"
        case ConnectionError() if endpoint.scheme == "tls":
            # With TLS 1.3 a certificate is refused after the client has taken the handshake for done, and
            # the alert that says so may be lost.
            return (
                f"{where} has cut the connection: does it speak TLS, does it refuse our certificate (see "
                "credentials), or does it serve no more masters at once?"
            )
        case ConnectionError():
            return (
                f"{where} has cut the connection: does it want TLS (tls://), or does it serve "
                "no more masters at once?"
            )
        case _:
            return f"{where} cannot be reached: {str(error) or type(error).__name__}"


def _explain_serial(error: BaseException, endpoint: Endpoint) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return f"there is no port {endpoint.port}: is the adapter plugged in, and passed into the container?"
    if number == errno.EACCES:
        return f"{endpoint.port} may not be opened: the service's user must be in the group dialout"
    if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in str(error):
        return f"{endpoint.port} is in use by another program (perhaps the running adapter)"
    if isinstance(error, termios.error):
        return f"{endpoint.port} does not take these settings: look at baud, parity and stop_bits"
    return f"{endpoint.port} cannot be used: {str(error) or 'it is gone'}"
