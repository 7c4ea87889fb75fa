"""`tocsin dead-letters`: what a target has refused for good, listed and replayed.

Asks the target's publisher by an MQTT command; the answer comes on the MQTT 5 response topic.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Any

import orjson

from services.watch import Console, site_topics
from shared.bus import Bus, Message
from shared.secrets import Secrets
from shared.service import Settings

_PATIENCE = 10.0


class NoAnswer(RuntimeError):
    """The service did not answer; the text says what to look at."""


async def ask(settings: Settings, service: str, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Send a command to a service and return its answer. Raises `NoAnswer`."""
    topics = site_topics(settings)
    if topics.site == "+":
        raise NoAnswer(f"the site file {settings.site} can't be read; name it with --site")
    client = f"tocsin-ask-{os.getpid()}"
    bus = Bus(settings.endpoint(Secrets(settings.secrets_dir)), client)
    answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    correlation = os.urandom(8)
    trouble = ""

    def on_answer(message: Message) -> None:
        if message.correlation == correlation and not answered.done():
            answered.set_result(orjson.loads(message.payload))

    def on_trouble(text: str) -> None:
        nonlocal trouble
        trouble = text

    reply = topics.reply(client)
    bus.subscribe(reply, on_answer)
    bus.on_trouble = on_trouble

    def send() -> None:
        bus.publish(
            topics.command(service, verb), orjson.dumps(asked), response_topic=reply, correlation=correlation
        )

    bus.on_joined(send)
    running = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(_PATIENCE):
            return await answered
    except TimeoutError:
        raise NoAnswer(
            trouble or f"{service} did not answer within {_PATIENCE:g} s: does it run, at this broker?"
        ) from None
    finally:
        await bus.close()
        running.cancel()


async def main(settings: Settings, args: argparse.Namespace) -> int:
    """Returns the exit code."""
    service = f"{args.target}-publisher"
    console = Console.of_stdout()
    try:
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
        console.line(f"{answer['replayed']} put back in line")
        return 0
    letters = answer["dead_letters"]
    if args.json:
        console.line(orjson.dumps(letters, option=orjson.OPT_INDENT_2).decode())
        return 0
    if not letters:
        console.line("no dead letters")
    for letter in letters:
        place = f"{letter['sensor']} → {letter['lane']}"
        console.line(f"{letter['seq']:>6}  {letter['time']}  {letter['kind']:<27} {place}")
        console.line(f"{'':8}{letter['reason']} (tried {letter['attempts']} times, event {letter['event']})")
    return 0
