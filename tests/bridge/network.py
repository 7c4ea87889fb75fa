"""A network of its own for this process and its children, made of Linux network namespaces.

It needs iproute2 and util-linux, and root or a kernel that lets users make namespaces. Everything is
gone when the process ends, however it ends.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

_OWN = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def apart(argv: Sequence[str]) -> list[str]:
    """`argv` as it is run in namespaces of its own: of the network, of mounts, of processes."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ["unshare", *user, *_OWN, *argv]


def why_not() -> str | None:
    """What keeps such a network from being made on this machine, or None."""
    trial = (
        "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add there"
        " && ip link add one type veth peer name other netns there"
    )
    try:
        done = subprocess.run(
            apart(["sh", "-c", trial]), capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return "there is no unshare: apt-get install util-linux"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["unshare failed"])[-1]
    return None


def ip(*arguments: str) -> None:
    """iproute2's `ip`. Raises CalledProcessError, whose message has what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def begin() -> None:
    """Once, in a process started `apart`."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.mkdir("/run/netns")
    ip("link", "set", "lo", "up")


class Place:
    """Another machine: a namespace `name` with two cables to this one. `line` leads to the centre and
    can be cut; `lan` is the network of the devices."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        first = 4 * number
        self.centre, self.address = f"192.0.2.{first + 1}", f"192.0.2.{first + 2}"
        """On the line: this end and the place's."""
        self.devices, self.lan = f"198.51.100.{first + 1}", f"198.51.100.{first + 2}"
        """On the devices' network: this end and the place's."""
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        for cable, near, far in (("line", self.centre, self.address), ("lan", self.devices, self.lan)):
            ip("link", "add", f"{name}-{cable}", "type", "veth", "peer", "name", cable, "netns", name)
            ip("address", "add", f"{near}/30", "dev", f"{name}-{cable}")
            ip("-n", name, "address", "add", f"{far}/30", "dev", cable)
            ip("link", "set", f"{name}-{cable}", "up")
            ip("-n", name, "link", "set", cable, "up")

    def there(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it is run in the place."""
        return ["ip", "netns", "exec", self.name, *argv]

    def unplug(self) -> None:
        """Cut the line at the gateway's end, which sees its interface go down."""
        ip("-n", self.name, "link", "set", "line", "down")

    def lose(self) -> None:
        """Cut the line at the far end: the gateway's packets go nowhere."""
        ip("link", "set", f"{self.name}-line", "down")

    def mend(self) -> None:
        ip("link", "set", f"{self.name}-line", "up")
        ip("-n", self.name, "link", "set", "line", "up")

    def throttle(self, kbit: int) -> None:
        """Let no more than that go up the line."""
        command = f"tc qdisc add dev line root tbf rate {kbit}kbit burst 8k latency 1s"
        subprocess.run(self.there(command.split()), check=True)
