"""Writes a site's ACL as EMQX wants it, for users that carry the site's namespace before their names.

    python -m services.broker_acl SITE | python -m scripts.emqx_acl NAMESPACE > acl.conf

It reads Mosquitto's form, which is made of the table in shared/topics.py, so the two brokers' rules
cannot differ. EMQX takes the first rule that fits: put the site's rules before others, and deny the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

_ACTIONS = {"read": "subscribe", "write": "publish", "readwrite": "all"}


def rules(acl: Iterable[str], namespace: str) -> Iterator[str]:
    """The rules that the lines of Mosquitto's `acl` stand for. Raises ValueError for a line that is none.

    >>> list(rules(["user reader", "topic read tocsin/v1/hq/events/#"], "tocsin-hq"))
    ['{allow, {username, "tocsin-hq.reader"}, subscribe, ["tocsin/v1/hq/events/#"]}.']
    """
    user = None
    for number, line in enumerate(acl, 1):
        match line.split(maxsplit=2):
            case [] | ["#", *_]:
                continue
            case ["user", name]:
                user = name
            case ["topic", access, topic] if user and access in _ACTIONS and '"' not in topic:
                who = f'{{username, "{namespace}.{user}"}}'
                yield f'{{allow, {who}, {_ACTIONS[access]}, ["{topic.strip()}"]}}.'
            case _:
                raise ValueError(f"line {number} of the ACL is not understood: {line.strip()}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("say the site's namespace: python -m scripts.emqx_acl tocsin-hq", file=sys.stderr)
        return 2
    try:
        print("\n".join(rules(sys.stdin, arguments[0])))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
