"""Topics: patterns, filters and what is subscribed to; and mistakes in what is said of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.mqtt import codec
from services.adapters.mqtt.codec import covers, minimal
from shared.dialect import ProfileError, compile_text
from tests.adapters.mqtt.test_golden import Written, decoder


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a/b", True),
        ("a/+", "a/#", False),
        ("a/+", "a/b/c", False),
        ("a/b", "a/+", False),
        ("+/b", "a/b", True),
        ("a/b/c", "a/b", False),
    ],
)
def test_covers(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


def test_no_message_is_subscribed_to_twice() -> None:
    assert minimal(["a/+", "a/b", "a/+", "c", "c/#"]) == ("a/+", "c/#")


def device(profile: str, **said: Any) -> codec.Decoder:
    return decoder({"profile": profile, "device": said})


def test_filters_follow_the_options() -> None:
    assert device("zigbee2mqtt").filters == ("zigbee2mqtt/#",)
    assert device("zigbee2mqtt", options={"base": "home/z2m"}).filters == ("home/z2m/#",)
    assert set(device("esphome").filters) == {"+/status", "+/binary_sensor/+/state"}
    assert set(device("frigate").filters) == {"frigate/available", "frigate/events", "frigate/reviews"}


def test_readings_add_their_topics_and_only_those_that_match_apply() -> None:
    leak = {"type": "water_leak", "reading": {"topic": "plant/+/leak", "value": "$body"}}
    one = device("generic", sensors={"leak": leak})
    assert set(one.filters) == {"plant/+/leak", "sensors/#"}
    memory = Written()
    assert not one.read("plant/3/leak/x", b"1", memory=memory).understood
    one.read("plant/3/leak", b"0", memory=memory)
    assert [report.sensor for report in one.read("plant/3/leak", b"1", memory=memory).reports] == ["leak"]


def test_what_must_be_remembered_is_told_and_handed_over() -> None:
    one = device("zigbee2mqtt", sensors={"leak": {"type": "water_leak", "topic": "a"}})
    memory = Written()
    result = one.read("zigbee2mqtt/a", b'{"water_leak": true}', memory=memory)
    assert result.memory
    assert dict(memory) == result.memory


def test_topics_of_nobody() -> None:
    result = device("frigate").read("other/events", b"{", memory=Written())
    assert not result.understood


@pytest.mark.parametrize("topic", ["a/{b", "a/x{b}", "a/#", "a+/b", "", "a/{b}/{b}", "a/{is}"])
def test_patterns_that_are_none(topic: str) -> None:
    text = f"about: x\ntopics: {{state: '{topic}'}}\nrules: [{{kind: sensor.event}}]"
    with pytest.raises(ProfileError):
        compile_text(text, "x.yaml", codec.Profile)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "about: x\nrules: [{kind: sensor.event}]\n",
            'x.yaml:1: topics: "topics" is missing; add it (the topics to follow, by a name of one\'s own)',
        ),
        (
            "about: x\ntopic: {a: '{b}'}\nrules: [{kind: sensor.event}]\n",
            'x.yaml:2: topic: there is no such key; did you mean "topics"?',
        ),
        (
            "about: x\ntopics: a/b\nrules: [{kind: sensor.event}]\n",
            "x.yaml:2: topics: this is not a mapping of keys; write `key: value` pairs under it",
        ),
        (
            "about: x\ntopics: {a: '{b}'}\nrules: {kind: sensor.event}\n",
            "x.yaml:3: rules: this is not a list; write it as [one, two], or with a dash before each",
        ),
        (
            "about: x\ntopics: {a: '{b}'}\nbody: jsn\nrules: [{kind: sensor.event}]\n",
            'x.yaml:3: body: this is none of the words for it; did you mean "json"?',
        ),
        (
            "about: 5\ntopics: {a: '{b}'}\nrules: [{kind: sensor.event}]\n",
            "x.yaml:1: about: this is not text; put it in quotes",
        ),
        (
            "about: x\ntopics: {a: '{serial}/state'}\nsensors: {serial: {about: x}}\n"
            "sensor: {serial: $topic.seriel}\nrules: [{kind: sensor.event}]\n",
            'x.yaml:4: sensor.serial: no topic has a part "seriel"; did you mean "serial"?',
        ),
        (
            "about: x\ntopics: {a: '{serial}/state'}\nrules:\n  - when: {$topic.is: a}\n    rules:\n"
            "      - when: {$topic.prt: x}\n        kind: {of: $topic.serial | lower}\n",
            'x.yaml:6: rules[0].rules[0].when.$topic.prt: no topic has a part "prt"; '
            "there are: is, name, serial",
        ),
        (
            "about: x\ntopics: {a: '{serial}/state'}\nrules:\n  - kind: sensor.event\n"
            "    native: {code: {first: [a, '$topic.b | lower']}}\n",
            'x.yaml:5: rules[0].native.code.first[1]: no topic has a part "b"; there are: is, name, serial',
        ),
    ],
)
def test_mistakes_of_a_profile_are_told_in_plain_words(text: str, told: str) -> None:
    with pytest.raises(ProfileError) as error:
        compile_text(text, "x.yaml", codec.Profile)
    assert str(error.value) == told


def test_an_option_in_a_topic_is_a_part_of_it() -> None:
    text = (
        "about: x\noptions: {base: {about: x, default: a}}\ntopics: {a: '{base}/{rest+}'}\n"
        "rules: [{kind: sensor.event, details: [$topic.base, $topic.rest, $topic.is, =$topic.x]}]\n"
    )
    compile_text(text, "x.yaml", codec.Profile)


@pytest.mark.parametrize(
    "reading",
    [
        {"topic": "a/#/b"},
        {"topic": "a+"},
        {"topic": ""},
        {"topic": "a", "momentary": True},
        {"topic": "a", "value": "x", "active": ["1"], "normal": [1]},
        {"topic": "a", "value": "x | lowre"},
        {"topic": "a", "value": "x", "active": [None]},
    ],
)
def test_readings_that_cannot_work(reading: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        codec.Reading.model_validate(reading)
