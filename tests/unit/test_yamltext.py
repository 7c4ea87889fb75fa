from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.yamltext import MAX_BYTES, YamlError, decode, locate, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("22:00", "22:00"),
        ("no", "no"),
        ("on", "on"),
        ("0012", "0012"),
        ("2026-12-25", "2026-12-25"),
        ("1_000", "1_000"),
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("12E4", 120000.0),
        (".inf", ".inf"),
        ("9" * 40, "9" * 40),
        ("true", True),
        ("~", None),
        ("'12'", "12"),
        ("-", None),
    ],
)
def test_plain_words_are_read_as_they_look(text: str, value: object) -> None:
    assert parse(f"a: {text}" if text != "-" else "a:") == {"a": value}


def test_keys_are_text() -> None:
    assert parse("1: a\ntrue: b\n~: c") == {"1": "a", "true": "b", "~": "c"}


def test_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [{x: 9}, *a]}"
    assert parse(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
        "d": {"x": 9, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        ("a: 1\nb: 2\na: 3", 3, 1, "second time"),
        ("a: {x: 1, x: 2}", 1, 11, "second time"),
        ("a: b: c", 1, 5, "second colon"),
        ("a:\n  b: 1\n  c:d\n\n# more\n  e: 1", 3, 3, "with a blank after the colon"),
        ("a: 1\nword\nb: 2", 2, 1, "this is a key without a value"),
        ("\ta: 1", 1, 1, "cannot be read"),
        ("a: @x", 1, 4, "cannot be read"),
        ("a: *x", 1, 4, "no anchor"),
        ("a: &x [*x]", 1, 8, "no anchor"),
        ("a: !!python/object/apply:os.system [x]", 1, 4, "tags"),
        ("a: !x y", 1, 4, "tags"),
        ("a: 'x", 1, 6, "opened in line 1"),
        ("a: [1,\nb: 2", 3, 1, "opened in line 1"),
        ("a: \x01", 1, 4, "control character"),
        ("? [a]\n: b", 1, 3, "single word"),
        ("a: 1\n---\nb: 2", 2, 1, "second document"),
        ("a:\n  b: 1\n c: 2", 3, 2, "indentation"),
        ("a: {<<: 1}", 1, 5, "takes a mapping"),
        ("a: " + "[" * 200, 1, 67, "deep"),
    ],
)
def test_mistakes_say_where_and_what(text: str, line: int, column: int, part: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert part in str(caught.value)
    assert caught.value.remedy


def test_aliases_do_not_multiply_without_bound() -> None:
    bomb = "a: &a [" + "x," * 9 + "]\n"
    for one, last in zip("bcdefghij", "abcdefghi", strict=True):
        bomb += f"{one}: &{one} [{','.join([f'*{last}'] * 9)}]\n"
    with pytest.raises(YamlError, match="aliases stand for more"):
        parse(bomb)


def test_decoding() -> None:
    assert decode(b"\xef\xbb\xbfa: \xc3\xbc") == "a: ü"
    with pytest.raises(YamlError) as caught:
        decode(b"a: 1\nb: \xff")
    assert (caught.value.line, caught.value.column) == (2, 4)
    with pytest.raises(YamlError, match="larger than"):
        decode(b" " * (MAX_BYTES + 1))


def test_places() -> None:
    place = locate("a:\n  - x\n  - {b: &b [1], c: *b}\nd: {<<: {e: 2}}")
    item = place.children["a"].children[1]
    assert (item.line, item.column) == (3, 5)
    assert item.keys["b"] == (3, 6)
    assert (item.children["b"].line, item.children["b"].column) == (3, 9)
    assert item.children["c"].children[0].line == 3
    assert (place.children["d"].children["e"].line, place.children["d"].children["e"].column) == (4, 13)


WORD = st.text("abcdefghijklmnopqrstuvwxyz-_ü", min_size=1, max_size=8)
# YAML 1.1 has further line ends, which PyYAML writes bare and reads folded.
TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]), max_size=20)
# 0E0 is a number here and in YAML 1.2, and text to PyYAML, which writes it bare.
SCIENTIFIC = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | TEXT.filter(lambda text: not SCIENTIFIC.fullmatch(text)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(WORD, VALUE, max_size=5), st.sampled_from([True, False, None]))
def test_what_yaml_writes_is_read_back(value: dict[str, object], flow: bool | None) -> None:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    text = yaml.dump(value, Dumper=Dumper, default_flow_style=flow, allow_unicode=True)
    assert parse(text) == value


@given(st.text(max_size=200))
def test_nothing_but_a_yaml_error_is_raised(text: str) -> None:
    try:
        parse(text)
    except YamlError:
        return
    locate(text)
