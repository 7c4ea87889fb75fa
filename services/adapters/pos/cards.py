"""Card numbers and the like out of receipts. Pure.

A payment card's number has 12 to 19 digits, the last of which makes its Luhn sum right (ISO/IEC 7812-1,
annex B). One may be shown in part only: the last four digits at most here (PCI DSS 3.4.1 allows more).
"""

from __future__ import annotations

import re

_RUN = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){11,63}(?![0-9])")
_TRACK = re.compile(r"(?:%?[A-Z][0-9 ]{12,23}\^[^?]*|;?[0-9]{12,19}=[0-9]{4,})\??")
"""What a magnetic stripe holds (ISO/IEC 7813), tracks 1 and 2."""
_SECRET = re.compile(r"\b(PIN|CVV2?|CVC2?|CID)\b([ .:#=]*)[0-9]{3,12}\b", re.IGNORECASE)
_KEEP = 4


def luhn(digits: str) -> bool:
    """Whether the Luhn sum is right.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2:
            value = value * 2 - 9 * (value > 4)
        total += value
    return total % 10 == 0


_BRANDS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)[0-9]+"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689])[0-9]{11,16}|35[2-8][0-9]{13,16}|6[0-9]{15,18}"
)
"""Numbers of the great brands: first digits and lengths."""


def masked(text: str) -> str:
    """`text` with asterisks in place of card numbers (but for their last four digits), of magnetic
    stripes and of what is called a PIN or a CVV.

    >>> masked("VISA 4111 1111 1111 1111 PIN: 1234")
    'VISA **** **** **** 1111 PIN: ****'
    """
    if not any(character.isdigit() for character in text):
        return text
    text = _TRACK.sub(lambda found: "*" * len(found[0]), text)
    text = _RUN.sub(_run, text)
    return _SECRET.sub(lambda found: f"{found[1]}{found[2]}****", text)


def _run(found: re.Match[str]) -> str:
    run = list(found[0])
    places = [place for place, character in enumerate(run) if character.isdigit()]
    digits = "".join(run[place] for place in places)
    begins = {number for number, place in enumerate(places) if not number or places[number - 1] != place - 1}
    ends = {*begins, len(digits)}
    for start, end in _numbers(digits, begins, ends):
        for number in range(start, end - _KEEP):
            run[places[number]] = "*"
    return "".join(run)


def _numbers(digits: str, begins: set[int], ends: set[int]) -> list[tuple[int, int]]:
    """Where in a run of digits a card's number may stand: between two gaps; anywhere only if it is one
    of a great brand, for of all numbers every tenth has a right Luhn sum."""
    found: list[tuple[int, int]] = []
    for start in range(len(digits) - 11):
        for end in range(min(start + 19, len(digits)), start + 11, -1):
            whole = start in begins and end in ends
            part = digits[start:end]
            if (whole or (len(part) >= 13 and _brand(part))) and luhn(part):
                found.append((start, end))
    return found


def _brand(part: str) -> bool:
    if not _BRANDS.fullmatch(part):
        return False
    return part[0] not in "25" or len(part) == 16
