from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.secrets import MAX_BYTES, MissingSecret, Secrets
from shared.site import SecretRef

KEY = SecretRef(secret="panel_key")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def put(folder: Path, name: str, value: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(value.encode() if isinstance(value, str) else value)
    path.chmod(0o600)
    return path


def value_of(secrets: Secrets, ref: SecretRef = KEY) -> str:
    return secrets.read(ref).get_secret_value()


def test_a_file_wins_over_the_environment(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path, environ={"TOCSIN_SECRET_PANEL_KEY": "from the environment"})
    assert value_of(secrets) == "from the environment"
    put(tmp_path, "panel_key", "from a file\r\n\n")
    assert value_of(Secrets(tmp_path, environ={"TOCSIN_SECRET_PANEL_KEY": "other"})) == "from a file"


def test_names_become_variables() -> None:
    secrets = Secrets(environ={"TOCSIN_SECRET_A_B_C": "value"})
    assert value_of(secrets, SecretRef(secret="a-b_c")) == "value"


def test_the_folder_comes_from_the_environment(tmp_path: Path) -> None:
    put(tmp_path, "panel_key", "value")
    assert value_of(Secrets(environ={"TOCSIN_SECRETS_DIR": str(tmp_path)})) == "value"


def test_inner_and_leading_space_belongs_to_the_value(tmp_path: Path) -> None:
    put(tmp_path, "panel_key", " a\nb \n")
    assert value_of(Secrets(tmp_path, environ={})) == " a\nb "


def test_what_is_missing_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingSecret) as caught:
        value_of(Secrets(tmp_path, environ={}))
    assert str(tmp_path / "panel_key") in str(caught.value)
    assert "TOCSIN_SECRET_PANEL_KEY" in str(caught.value)
    with pytest.raises(MissingSecret, match="set TOCSIN_SECRETS_DIR"):
        value_of(Secrets(environ={}))


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "empty"), ("\n", "empty"), (b"\xff\xfe", "not UTF-8"), (b"x" * (MAX_BYTES + 1), "larger than")],
)
def test_what_cannot_be_a_secret(tmp_path: Path, content: str | bytes, part: str) -> None:
    put(tmp_path, "panel_key", content)
    with pytest.raises(MissingSecret, match=part):
        value_of(Secrets(tmp_path, environ={}))


def test_an_environment_that_is_not_text() -> None:
    with pytest.raises(MissingSecret, match="not UTF-8"):
        value_of(Secrets(environ={"TOCSIN_SECRET_PANEL_KEY": "a\udcff"}))


def test_a_folder_in_the_place_of_a_secret(tmp_path: Path) -> None:
    (tmp_path / "panel_key").mkdir()
    with pytest.raises(MissingSecret, match="cannot be read"):
        value_of(Secrets(tmp_path, environ={}))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    clock = Clock()
    secrets = Secrets(tmp_path, environ={}, clock=clock)
    put(tmp_path, "panel_key", "one")
    assert value_of(secrets) == "one"
    put(tmp_path, "panel_key", "another")
    assert value_of(secrets) == "one", "a file is looked at at most once a second"
    clock.now = 1.0
    assert value_of(secrets) == "another"
    (tmp_path / "panel_key").unlink()
    clock.now = 2.0
    with pytest.raises(MissingSecret):
        value_of(secrets)


def test_swapped_links_are_a_change(tmp_path: Path) -> None:
    clock = Clock()
    for version, value in (("one", "1111"), ("two", "2222")):
        (tmp_path / version).mkdir()
        put(tmp_path / version, "panel_key", value)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "panel_key").symlink_to("..data/panel_key")
    secrets = Secrets(tmp_path, environ={}, clock=clock)
    assert value_of(secrets) == "1111"
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    clock.now = 1.0
    assert value_of(secrets) == "2222"


def test_changes_are_told_once(tmp_path: Path) -> None:
    clock = Clock()
    secrets = Secrets(tmp_path, environ={}, clock=clock)

    def changed() -> frozenset[str]:
        clock.now += 1
        return secrets.changed()

    put(tmp_path, "panel_key", "one")
    value_of(secrets)
    with pytest.raises(MissingSecret):
        value_of(secrets, SecretRef(secret="other"))
    assert changed() == frozenset()
    put(tmp_path, "panel_key", "two!")
    assert changed() == {"panel_key"}
    assert changed() == frozenset()
    put(tmp_path, "other", "here")
    assert changed() == {"other"}
    (tmp_path / "panel_key").unlink()
    assert changed() == {"panel_key"}
    assert changed() == frozenset()


def test_a_change_that_was_read_before_it_was_asked_about_is_told_all_the_same(tmp_path: Path) -> None:
    clock = Clock()
    secrets = Secrets(tmp_path, environ={}, clock=clock)
    put(tmp_path, "panel_key", "one")
    value_of(secrets)
    put(tmp_path, "panel_key", "two!")
    clock.now += 1
    assert value_of(secrets) == "two!"
    assert secrets.changed() == {"panel_key"}


def test_a_file_of_ours_that_everybody_can_read_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    put(tmp_path, "panel_key", "value").chmod(0o644)
    secrets = Secrets(tmp_path, environ={}, warn=said.append, clock=clock)
    for content in ("value", "other"):
        put(tmp_path, "panel_key", content).chmod(0o644)
        clock.now += 1
        value_of(secrets)
    assert said == [f"everybody on this machine can read {tmp_path / 'panel_key'}; chmod 600 it"]
    put(tmp_path, "panel_key", "value")
    assert secrets.exposed(KEY) is None


SECRET = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=8, max_size=30).filter(
    lambda text: text.strip("\r\n") and "*" not in text
)


@given(SECRET, st.text(max_size=10), st.text(max_size=10))
def test_no_secret_is_left_in_a_text(value: str, before: str, after: str) -> None:
    secrets = Secrets(environ={"TOCSIN_SECRET_PANEL_KEY": value})
    value = value_of(secrets)
    data = value.encode()
    for form in (
        value,
        quote(value, safe=""),
        json.dumps(value)[1:-1],
        data.hex(),
        data.hex().upper(),
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode(),
    ):
        assert form not in secrets.redact(before + form + after)


@pytest.mark.parametrize("user", ["", "a", "ab", "abc"])
def test_basic_authentication_is_redacted(user: str) -> None:
    secrets = Secrets(environ={"TOCSIN_SECRET_PANEL_KEY": "correct horse"})
    value_of(secrets)
    encoded = base64.b64encode(f"{user}:correct horse".encode()).decode()
    left = secrets.redact(f"Authorization: Basic {encoded}")
    assert "***" in left
    assert len(left) <= len("Authorization: Basic ***") + 8


def test_redaction_leaves_the_rest_alone() -> None:
    secrets = Secrets(
        environ={"TOCSIN_SECRET_A": "abcdef", "TOCSIN_SECRET_B": "abcdefgh", "TOCSIN_SECRET_C": "xy"}
    )
    assert secrets.redact("abcdef") == "abcdef"
    for name in "abc":
        value_of(secrets, SecretRef(secret=name))
    assert secrets.redact("key=abcdefgh; abcdef, xyz") == "key=***; ***, xyz"
    assert secrets.redact("") == ""
    secrets.conceal("inner-token")
    assert secrets.redact("an inner-token") == "an ***"


def test_a_replaced_secret_stays_hidden(tmp_path: Path) -> None:
    clock = Clock()
    secrets = Secrets(tmp_path, environ={}, clock=clock)
    for value in ("old-value", "new-value"):
        put(tmp_path, "panel_key", value)
        clock.now += 1
        value_of(secrets)
    assert secrets.redact("old-value new-value") == "*** ***"


def test_the_lines_of_a_key_are_hidden_one_by_one() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PRIVATE KEY-----"
    secrets = Secrets(environ={"TOCSIN_SECRET_PANEL_KEY": key})
    value_of(secrets)
    assert secrets.redact("line MIIEvQIBADANBgkqhkiG9w0B") == "line ***"
