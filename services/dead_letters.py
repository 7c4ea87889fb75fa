"""`tocsin dead-letters`: what a target has refused for good, listed and replayed.

Asks the target's publisher by an MQTT command; the answer comes on the MQTT 5 response topic.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import datetime
from typing import Any

import orjson

from services.watch import Console, site_topics
from shared.bus import Bus, Message
from shared.events import PLAIN_JSON
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import SiteError, load

_PATIENCE = 10.0


class NoAnswer(RuntimeError):
    """The service did not answer; the text says what to look at."""


async def ask(settings: Settings, service: str, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Send a command to a service and return its answer. Raises `NoAnswer`."""
    topics = site_topics(settings)
    client = f"tocsin-ask-{os.getpid()}"
    bus = Bus(settings.endpoint(Secrets(settings.secrets_dir)), client)
    answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    correlation = os.urandom(8)

    def on_answer(message: Message) -> None:
        if message.correlation == correlation and not answered.done():
            answered.set_result(orjson.loads(message.payload))

    def on_trouble(text: str) -> None:
        if not answered.done():
            answered.set_exception(NoAnswer(text))

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
        )

    bus.on_joined(send)
    running = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(_PATIENCE):
            return await answered
    except TimeoutError:
        raise NoAnswer(
            f"{service} did not answer within {_PATIENCE:g} s: does it run, at this broker?"
        ) from None
    finally:
        await bus.close()
        running.cancel()


async def main(settings: Settings, args: argparse.Namespace) -> int:
    """Returns the exit code."""
    service = f"{args.target}-publisher"
    console = Console.of_stdout()
    try:
        _check_target(settings, args.target)
        if args.verb == "list":
            answer = await ask(settings, service, "dead-letters", {})
        elif args.all or args.seqs:
            answer = await ask(settings, service, "replay", {"seqs": "all" if args.all else args.seqs})
        else:
            print("name the numbers to replay, or --all", file=sys.stderr)
            return 2
    except NoAnswer as error:
        print(error, file=sys.stderr)
        return 1
    if "error" in answer:
        print(answer["error"], file=sys.stderr)
        return 1
    if args.verb == "replay":
        return _tell_replay(console, args.target, None if args.all else args.seqs, answer["replayed"])
    letters = answer["dead_letters"]
    if args.json:
        console.line(orjson.dumps(letters, option=orjson.OPT_INDENT_2).decode())
        return 0
    _tell_letters(console, args.target, letters)
    return 0


def _check_target(settings: Settings, target: str) -> None:
    try:
        site = load(settings.site or "")
    except SiteError as error:
        raise NoAnswer(
            f"the site file {settings.site} can't be read ({error}); name it with --site"
        ) from None
    known = [name for name, _ in site.targets.items()]
    if target not in known:
        raise NoAnswer(f"the site file has no target {target}; it has: {', '.join(known) or 'none'}")


def _tell_replay(console: Console, target: str, asked: list[int] | None, replayed: int) -> int:
    missing = 0 if asked is None else len(set(asked)) - replayed
    console.line(f"{_letters(replayed)} on the way to {target} again")
    if missing:
        numbers = (
            "is no dead letter of this number" if missing == 1 else "are no dead letters of these numbers"
        )
        print(f"{missing} of them: there {numbers}; see `tocsin dead-letters list`", file=sys.stderr)
    return 1 if missing else 0


def _tell_letters(console: Console, target: str, letters: list[dict[str, Any]]) -> None:
    if not letters:
        console.line(f"no dead letters for {target}")
        return
    for letter in letters:
        happened = datetime.fromisoformat(letter["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        place = f"{letter['sensor']} → {letter['lane']}"
        tried = "tried once" if letter["attempts"] == 1 else f"tried {letter['attempts']} times"
        console.line(f"{letter['seq']:>6}  {happened}  {letter['kind']:<27} {place}")
        console.line(f"{'':8}{letter['reason']} ({tried}; event {letter['event']})")
    console.line(f"{_letters(len(letters))}. Once the cause is put right: tocsin dead-letters replay --all")


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
