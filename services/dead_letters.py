"""`tocsin dead-letters`: what a target has refused for good, listed and replayed.

Asks the target's publisher by an MQTT command; the answer comes on the MQTT 5 response topic. A command to a
service reaches all its copies, and each answers: what they say is put together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import mqtt5
import orjson

from services.watch import Console, printable, site_topics
from shared.bus import Bus, Message
from shared.copies import name_of, names_of, split
from shared.events import PLAIN_JSON
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import SiteError, load

_PATIENCE = 10.0
_MOST = 1000
"""How many letters of each copy are listed."""
_OTHERS = 0.3
"""How long copies that the site file no longer declares have to answer after the last that it does."""

Answers = dict[str, dict[str, Any]]
"""By name of the copy."""


class NoAnswer(RuntimeError):
    """The service did not answer; the text says what to look at."""


async def ask(
    settings: Settings, service: str, verb: str, asked: Mapping[str, Any], copies: Collection[str] = ()
) -> Answers:
    """Send a command to a service, or to one copy of it, and return the answers: of `copies` (by default of
    `service` alone) as far as they answer in time, and of whoever else does.

    Raises `NoAnswer` if nobody does."""
    topics = site_topics(settings)
    client = f"tocsin-ask-{os.getpid()}"
    bus = Bus(settings.endpoint(Secrets(settings.secrets_dir)), client)
    missing = set(copies or (service,))
    answers: Answers = {}
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    correlation = os.urandom(8)

    def on_answer(message: Message) -> None:
        if message.correlation != correlation:
            return
        answer = orjson.loads(message.payload)
        name = answer.pop("service", service)
        answers[name] = answer
        missing.discard(name)
        if not missing and not done.done():
            done.set_result(None)

    def on_trouble(text: str) -> None:
        if not done.done():
            done.set_exception(NoAnswer(text))

    def on_asked(code: mqtt5.PubAckReasonCode) -> None:
        if code is mqtt5.PubAckReasonCode.NOT_AUTHORIZED:
            on_trouble("the broker does not let this user ask: dead-letters needs the user operator")

    reply = topics.reply(client)
    bus.subscribe(reply, on_answer)
    bus.on_trouble = on_trouble

    def send() -> None:
        bus.publish(
            topics.command(service, verb),
            orjson.dumps(asked),
            response_topic=reply,
            correlation=correlation,
            content_type=PLAIN_JSON,
            acked=on_asked,
        )

    bus.on_joined(send)
    running = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(_PATIENCE):
            await done
        if copies:
            await asyncio.sleep(_OTHERS)
    except TimeoutError:
        if not answers:
            raise NoAnswer(
                f"{service} did not answer within {_PATIENCE:g} s: does it run, at this broker?"
            ) from None
    finally:
        await bus.close()
        running.cancel()
    return answers


def letter(text: str) -> tuple[int, int]:
    """A dead letter as `list` shows it: SEQ, or COPY:SEQ for those of a further copy. Raises ValueError.

    >>> letter("7"), letter("2:7")
    ((0, 7), (2, 7))
    """
    found = re.fullmatch(r"(?:([0-9]{1,4}):)?([0-9]{1,18})", text)
    if found is None:
        raise ValueError(f"{text!r} is not a number as `tocsin dead-letters list` shows them")
    return int(found[1] or 0), int(found[2])


async def main(settings: Settings, args: argparse.Namespace) -> int:
    """Returns the exit code."""
    service = f"{args.target}-publisher"
    console = Console.of_stdout()
    named: list[tuple[int, int]] | None = None
    if args.verb == "replay" and args.all and args.seqs:
        print("name the numbers to replay, or --all, not both", file=sys.stderr)
        return 2
    if args.verb == "replay" and not args.all:
        try:
            named = [letter(text) for text in args.seqs]
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        if not named:
            print("name the numbers to replay, or --all", file=sys.stderr)
            return 2
    try:
        copies = _copies(settings, args.target)
        if args.verb == "list":
            answers = await ask(settings, service, "dead-letters", {"limit": _MOST + 1}, copies)
        elif named is None:
            answers = await ask(settings, service, "replay", {"seqs": "all"}, copies)
        else:
            copies, answers = await _replay(settings, service, named)
    except NoAnswer as error:
        print(error, file=sys.stderr)
        return 1
    wrong = [f"{name} did not answer within {_PATIENCE:g} s" for name in copies if name not in answers]
    wrong += [f"{name}: {answer.pop('error')}" for name, answer in answers.items() if "error" in answer]
    code = _tell(console, args, answers, named)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else code


async def _replay(
    settings: Settings, service: str, letters: Collection[tuple[int, int]]
) -> tuple[list[str], Answers]:
    """Ask each copy for its own: the names of those asked, and their answers."""
    names = sorted({name_of(service, copy) for copy, _ in letters})
    answers: Answers = {}
    for name in names:
        seqs = [seq for copy, seq in letters if name_of(service, copy) == name]
        try:
            answers |= await ask(settings, name, "replay", {"seqs": seqs}, [name])
        except NoAnswer:
            if len(names) == 1:
                raise
    return names, answers


def _tell(
    console: Console, args: argparse.Namespace, answers: Answers, named: Collection[tuple[int, int]] | None
) -> int:
    if args.verb == "replay":
        replayed = sum(answer.get("replayed", 0) for answer in answers.values())
        return _tell_replay(console, args.target, named, replayed)
    letters = [
        {"copy": split(name)[1], **letter}
        for name, answer in answers.items()
        for letter in answer.get("dead_letters", ())[:_MOST]
    ]
    letters.sort(key=lambda letter: (letter["since"], letter["copy"], letter["seq"]))
    if args.json:
        console.line(orjson.dumps(letters, option=orjson.OPT_INDENT_2).decode())
    else:
        _tell_letters(console, args.target, letters)
    if any(len(answer.get("dead_letters", ())) > _MOST for answer in answers.values()):
        print(f"there are more: the oldest {_MOST} of each copy are listed", file=sys.stderr)
    return 0


def _copies(settings: Settings, target: str) -> list[str]:
    """The names of the copies of a target's publisher."""
    try:
        site = load(settings.site or "")
    except SiteError as error:
        raise NoAnswer(
            f"the site file {settings.site} can't be read ({error}); name it with --site"
        ) from None
    known = [name for name, _ in site.targets.items()]
    if target not in known:
        raise NoAnswer(f"the site file has no target {target}; it has: {', '.join(known) or 'none'}")
    service = f"{target}-publisher"
    return names_of(service, site.copies_of(service))


def _tell_replay(
    console: Console, target: str, asked: Collection[tuple[int, int]] | None, replayed: int
) -> int:
    named = sorted(set(asked or ()))
    missing = len(named) - replayed if asked is not None else 0
    if replayed or not missing:
        console.line(f"{_letters(replayed)} on the way to {target} again")
    if missing:
        numbers = ", ".join(_number(copy, seq) for copy, seq in named)
        if len(named) == 1:
            said = f"no dead letter has the number {numbers}"
        elif missing == len(named):
            said = f"no dead letter has one of the numbers {numbers}"
        else:
            said = f"{missing} of the numbers {numbers} {'is' if missing == 1 else 'are'} no dead letter's"
        print(f"{said}; see `tocsin dead-letters list`", file=sys.stderr)
    return 1 if missing else 0


def _tell_letters(console: Console, target: str, letters: list[dict[str, Any]]) -> None:
    if not letters:
        console.line(f"no dead letters for {target}")
        return
    for letter in letters:
        happened = datetime.fromisoformat(letter["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        place = f"{letter['sensor']} → {letter['lane']}"
        tried = "tried once" if letter["attempts"] == 1 else f"tried {letter['attempts']} times"
        number = _number(letter["copy"], letter["seq"])
        console.line(f"{number:>6}  {happened}  {letter['kind']:<27} {place}")
        console.line(f"{'':8}{printable(letter['reason'])} ({tried}; event {letter['event']})")
    console.line(f"{_letters(len(letters))}. Once the cause is put right: tocsin dead-letters replay --all")


def _number(copy: int, seq: int) -> str:
    """As `letter` reads it."""
    return f"{copy}:{seq}" if copy else str(seq)


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
