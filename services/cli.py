"""The command `tocsin`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

import services.lean  # noqa: F401  (before all that it keeps lean)
from shared import __version__
from shared.settings import Settings, WrongSetting

_ABOUT = """\
Tocsin ties physical-security sensors to the cameras that see them: what a sensor reports becomes a
custom event, with all that it said, on each camera that sees it.

  tocsin demo                     see it work: simulated sensors, a broker, every service, a VMS
  tocsin check site.yaml          is the site file right? what is missing?
  tocsin init                     certificates, passwords and the broker's ACL for this site
  tocsin run correlator           run one service (each is a process of its own)
  tocsin watch                    follow events from sensor to camera, live
  tocsin dead-letters list        what a target has refused, and why
  tocsin simulate panel …         speak as a device of the site file, to try it
  tocsin backup DIR               what is held, and the site file, in one archive, while all goes on
  tocsin restore ARCHIVE          put it back
"""


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def _count(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")


def _settings(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    group = parser.add_argument_group(
        "settings", "each can also be given as TOCSIN_<NAME> in the environment"
    )
    for each in fields(Settings):
        if names is None or each.name in names:
            default = f" (default: {each.default})" if each.default else ""
            group.add_argument(
                "--" + each.name.replace("_", "-"), metavar="X", help=each.metadata["help"] + default
            )


def _gateway(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", default=".", help="the gateway's folder, with site/site.yaml (default: this one)"
    )
    parser.add_argument(
        "--names",
        metavar="NAME,...",
        default=os.environ.get("TOCSIN_BROKER_NAMES") or "mosquitto,localhost,127.0.0.1",
        help="names and addresses that the broker is reached by (TOCSIN_BROKER_NAMES; default: %(default)s)",
    )
    parser.add_argument(
        "--reload", type=int, metavar="PID", help="have this process, Mosquitto, read its files anew (SIGHUP)"
    )


_ON_THE_BUS = (
    "site",
    "mqtt_url",
    "mqtt_ca",
    "mqtt_cert",
    "mqtt_key",
    "mqtt_username",
    "mqtt_password",
    "secrets_dir",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tocsin", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"tocsin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    run = commands.add_parser(
        "run",
        help="run one service",
        description="Run one service until it is told to stop (SIGTERM, SIGINT).",
        epilog="Services: adapter-<protocol> (adapter-dc09, adapter-webhook, adapter-mqtt, …), correlator, "
        "vms-publisher, camio-publisher. All that talk to each other need the same site file and broker.",
    )
    own = os.environ.get("TOCSIN_SERVICE")  # a container image runs the one that is in it
    run.add_argument("service", metavar="SERVICE", nargs="?" if own else None, default=own, help="its name")
    _settings(run)

    check = commands.add_parser(
        "check",
        help="check a site file",
        description="Check a site file as every service would: mistakes with file, line and remedy, missing "
        "secrets, what each camera's token opens. With --online also tries every address, token and clock, "
        "and asks the gateway, if it runs, what it has heard and refused.",
        epilog="Exit code 0 if all is well, 1 if something is wrong, 2 if the file could not be read.",
    )
    check.add_argument("file", metavar="SITE", help="the site file")
    check.add_argument("--online", action="store_true", help="try devices, tokens, Camio and clocks")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    _settings(check, [name for name in _ON_THE_BUS if name != "site"])

    init = commands.add_parser(
        "init",
        help="make certificates, passwords and the broker's ACL",
        description="Make what a gateway's broker and its services know each other by, as far as it is "
        "missing or about to end; say which secrets are still missing. It may run at every start.",
    )
    _gateway(init)
    rotate = commands.add_parser(
        "rotate",
        help="make all certificates anew",
        description="Make every certificate anew, with nothing stopped: services read theirs at each "
        "connection, Mosquitto at --reload.",
    )
    _gateway(rotate)
    step = rotate.add_mutually_exclusive_group()
    step.add_argument("--new-ca", action="store_true", help="begin a change of CA: both are trusted")
    step.add_argument("--drop-old-ca", action="store_true", help="end it: only the new one is trusted")
    rotate.add_argument("--passwords", action="store_true", help="make all passwords anew too")

    watch = commands.add_parser(
        "watch",
        help="follow events live",
        description="Follow every event from its sensor to its cameras and targets, by public topics only.",
    )
    watch.add_argument("--json", action="store_true", help="print the messages as they are, one a line")
    _settings(watch, _ON_THE_BUS)

    dead = commands.add_parser(
        "dead-letters",
        help="list and replay what a target refused",
        description="What a target has refused for good is kept by its publisher. List it, put right what "
        "was wrong, and replay it. The publisher must be running.",
    )
    verbs = dead.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, about in (("list", "list dead letters"), ("replay", "deliver dead letters again")):
        sub = verbs.add_parser(verb, help=about)
        sub.add_argument("--target", default="vms", help="vms (the default) or camio")
        if verb == "list":
            sub.add_argument("--json", action="store_true", help="print them as JSON")
        else:
            sub.add_argument("seqs", nargs="*", metavar="SEQ", help="numbers, as `list` shows them")
            sub.add_argument("--all", action="store_true", help="all of them")
        _settings(sub, _ON_THE_BUS)

    _backup_parsers(commands)

    simulate = commands.add_parser(
        "simulate",
        help="speak as a device of the site file",
        description="Speak a device's own protocol to its adapter, as the device would, to try a site.",
        epilog="Example: tocsin simulate panel kitchen-smoke smoke.detected --site site.yaml "
        "--to 127.0.0.1:12000",
    )
    simulate.add_argument("device", help="id of the device in the site file")
    simulate.add_argument("sensor", help="id of its sensor")
    simulate.add_argument("kind", help="kind of event, such as smoke.detected")
    simulate.add_argument(
        "--to",
        required=True,
        metavar="ADDRESS",
        help="of the adapter or broker: HOST:PORT, or where a protocol has more ways than one a URL "
        "(https://…, mqtts://…, udp://…, serial://…)",
    )
    simulate.add_argument(
        "--every", type=_seconds, metavar="SECONDS", help="again and again, with pauses of so many seconds"
    )
    simulate.add_argument(
        "--count", type=_count, metavar="N", help="how often (default: once; with --every, without end)"
    )
    _settings(simulate, ("site", "secrets_dir"))

    discover = commands.add_parser(
        "discover",
        help="find devices on the network",
        description="Ask which devices of a protocol are on the network, and print how they could stand in "
        "the site file. Nothing is changed, and no account is needed.",
        epilog="Example: tocsin discover onvif --interface 192.0.2.5",
    )
    discover.add_argument("protocol", help="the protocol, such as onvif")
    discover.add_argument(
        "--seconds", type=_seconds, default=4.0, metavar="N", help="how long to wait for answers (default: 4)"
    )
    discover.add_argument(
        "--interface", metavar="ADDRESS", help="this machine's own address on the network to ask on"
    )
    discover.add_argument(
        "--address", metavar="HOST[:PORT]", help="ask this device, or multicast group, only"
    )

    demo = commands.add_parser(
        "demo",
        help="see everything work, on simulators",
        description="Start a broker, every service as a process of its own, simulated sensors of all types "
        "that speak their real protocols, and simulators of VMS and Camio; show each event on its way.",
    )
    demo.add_argument(
        "--seconds", type=_seconds, metavar="N", help="end after N seconds; exit code 0 if nothing is missing"
    )
    where = demo.add_mutually_exclusive_group()
    where.add_argument("--keep", metavar="FOLDER", help="keep logs, stores and the site file there")
    where.add_argument(
        "--gateway",
        metavar="FOLDER",
        help="play to the gateway of compose.yaml that has this folder, instead of starting one",
    )
    return parser


_BACKUP = """\
Copy the stores below --state-dir, and the site file, into one archive (a .tar.gz with a manifest and
check sums, readable by its owner only). Services may run: each store is copied as it is at one instant,
and what passes from one to another meanwhile is in at least one of the copies.

A store holds what is not delivered yet, the dead letters, and the ids and states already known. So a
backup protects what is held up, as while a target is away for days; an hour later it is an hour old.
Secrets are left out unless you ask for them; certificates and keys of TLS are never in it.
"""
_BACKUP_MORE = """\
DIR gets a file named by the site and the time; a FILE must not exist; - is standard output.

  tocsin backup /backup/                                a gateway: all services of STATE/<service>/
  tocsin backup /backup/ --secrets                      with the secrets, in clear: guard the file
  docker compose exec -T vms-publisher tocsin backup - > vms.tar.gz
                                                        one service, from inside its container

Exit code 0: the archive is whole and on disk. 1: there is none, and the reason was said.
"""
_RESTORE = """\
Put back what `tocsin backup` saved, below --state-dir, --site and --secrets-dir. Stop the services
first: a store in use is refused. Everything is checked before anything is changed: each file against
its check sum, each store's integrity and version. An older store is brought up to date.

Nothing that is there is overwritten unless you say --overwrite, and then it is kept beside, as
NAME.before-<time>.

What was delivered after the backup was made is in it as not yet delivered. Publishers look for each such
event at the VMS before they send it, so it does not come twice there. Camio can't be searched: there
it does. Events that came and went after the backup was made are not in it.
"""
_RESTORE_MORE = """\
  tocsin restore tocsin-hq-20261122T081500Z.tar.gz --dry-run      what is in it, and is it whole?
  tocsin restore tocsin-hq-20261122T081500Z.tar.gz                all of a gateway
  docker compose run --rm -T vms-publisher tocsin restore - --without-site < vms.tar.gz
                                                                  one service, in its container

Exit code 0: restored. 1: refused, nothing was changed, unless it says that a part was restored. 2: the
archive is damaged, nothing was changed.
"""
_OF_FILES = ("site", "state_dir", "secrets_dir")


def _backup_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    backup = commands.add_parser(
        "backup",
        help="save stores and site file in one archive",
        description=_BACKUP, epilog=_BACKUP_MORE, formatter_class=raw,
    )  # fmt: skip
    backup.add_argument("to", metavar="DIR|FILE|-", help="where to write it")
    restore = commands.add_parser(
        "restore",
        help="put a backup back",
        description=_RESTORE, epilog=_RESTORE_MORE, formatter_class=raw,
    )  # fmt: skip
    restore.add_argument("archive", metavar="ARCHIVE|-", help="what `tocsin backup` wrote")
    restore.add_argument("--overwrite", action="store_true", help="move aside what is there")
    restore.add_argument("--dry-run", action="store_true", help="check the archive, say what is in it")
    for each in (backup, restore):
        each.add_argument("--secrets", action="store_true", help="the secrets too, which are in it in clear")
        each.add_argument("--without-site", action="store_true", help="leave the site file out")
        _settings(each, _OF_FILES)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    code = 0
    try:
        try:
            code = _answer(argv)
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # Nobody reads on. What is still to be written would be complained of when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _answer(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return 130
    except WrongSetting as error:
        print(error, file=sys.stderr)
        return 2
    except ImportError as error:
        if "TOCSIN_SERVICE" not in os.environ or not (error.name or "").startswith("services"):
            raise
        asked = " ".join(filter(None, (args.command, vars(args).get("service"))))
        print(f"this image has one service and no `tocsin {asked}`; tocsin/tools has all", file=sys.stderr)
        return 2


def _dispatch(args: argparse.Namespace) -> int:
    options = vars(args)
    if args.command != "run":
        # These speak to people; what the library logs, they say themselves.
        logging.getLogger("tocsin").addHandler(logging.NullHandler())
    match args.command:
        case "run":
            import shared.plain  # noqa: F401, PLC0415  a service has no pydantic: see shared.model
            from services import run  # noqa: PLC0415

            try:
                return run.main(args.service, options)
            except run.UnknownService as error:
                print(error, file=sys.stderr)
                return 2
        case "check":
            from services import check  # noqa: PLC0415

            settings = Settings.of(options)
            return asyncio.run(check.main(args.file, settings, online=args.online, as_json=args.json))
        case "init" | "rotate":
            from services import identities  # noqa: PLC0415

            return identities.main(args)
        case "watch":
            from services import watch  # noqa: PLC0415

            return asyncio.run(watch.main(Settings.of(options), as_json=args.json))
        case "dead-letters":
            from services import dead_letters  # noqa: PLC0415

            return asyncio.run(dead_letters.main(Settings.of(options), args))
        case "backup":
            from services import backup  # noqa: PLC0415

            return backup.backup(Settings.of(options), args)
        case "restore":
            from services import backup  # noqa: PLC0415

            return backup.restore(Settings.of(options), args)
        case "simulate":
            from services import simulate  # noqa: PLC0415

            return asyncio.run(simulate.main(Settings.of(options), args))
        case "discover":
            from services import discover  # noqa: PLC0415

            return asyncio.run(
                discover.main(
                    args.protocol, duration=args.seconds, address=args.address, interface=args.interface
                )
            )
        case "demo":
            if args.gateway is not None:
                from services import demo_gateway  # noqa: PLC0415

                return demo_gateway.main(Settings.of({}), args.gateway, seconds=args.seconds)
            from services import demo  # noqa: PLC0415

            return demo.main(seconds=args.seconds, keep=args.keep)
    raise AssertionError(args.command)


if __name__ == "__main__":
    sys.exit(main())
