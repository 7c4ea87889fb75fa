"""Makes a room for a new protocol: `make adapter NAME=acme`.

It lays out services/adapters/acme and tests/adapters/acme from scripts/templates, and enters the
adapter where it must be listed: an extra in pyproject.toml, a service in compose.yaml, objects in
k8s, an image in docker-bake.hcl, a target in observability/prometheus.yml. The room runs at once, but
for its codec: its tests say what there is to fill in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SUFFIX = ".tmpl"


_NEXT = """
Now fill it in, starting with codec.py and a golden case: make test ARGS=tests/adapters/@MODULE@
What only you can say:
- pyproject.toml: the packages it needs, in the extra @NAME@; then make lock
- compose.yaml, k8s/base/adapter-@NAME@.yaml: the port it listens on, which of its addresses devices may
  reach, and where it connects to (egress): it listens on 7000 there, and connects to nothing
- k8s/overlays: where it is to run, its name in the first patch, and the ACL anew (k8s/README.md)
- README.md, docs/security.md: its row in the tables of adapters and of what listens
- docs/images.md, its README: its image's size; make images, then make images ARGS=--document"""


class Refused(Exception):
    """It cannot be made; the text says why."""


def make(name: str, root: Path = ROOT) -> list[Path]:
    """Makes the room and returns the files written. Raises `Refused`, and then nothing was written."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise Refused(
            f"a room's name is small letters, digits and single dashes, not {name!r}: make adapter NAME=acme"
        )
    module = name.replace("-", "_")
    room, tests = root / "services" / "adapters" / module, root / "tests" / "adapters" / module
    for folder in (room, tests):
        if folder.exists():
            raise Refused(f"{folder} is there already")
    written = _files(name, module, room, tests)
    written |= _lists(name, root)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(written)


def _files(name: str, module: str, room: Path, tests: Path) -> dict[Path, str]:
    templates = ROOT / "scripts" / "templates" / "adapter"
    words = {"@NAME@": name, "@MODULE@": module}
    words["@EXAMPLE@"] = _fill((templates / "room" / f"example.yaml{_SUFFIX}").read_text(), words)
    return {
        target / path.relative_to(templates / source).with_suffix(""): _fill(path.read_text(), words)
        for source, target in (("room", room), ("tests", tests))
        for path in sorted((templates / source).rglob(f"*{_SUFFIX}"))
    }


def _lists(name: str, root: Path) -> dict[Path, str]:
    service = f"adapter-{name}"
    pyproject, compose = root / "pyproject.toml", root / "compose.yaml"
    bake, prometheus = root / "docker-bake.hcl", root / "observability" / "prometheus.yml"
    base, components = root / "k8s" / "base", root / "k8s" / "components"
    kustomization = base / "kustomization.yaml"
    templates = ROOT / "scripts" / "templates"
    words = {"@NAME@": name}
    return {
        pyproject: _insert(
            pyproject, r"(?m)^\[project\.optional-dependencies\]\n(?:.+\n)*", f"{name} = []\n"
        ),
        compose: _compose(compose, service, _fill((templates / f"compose.yaml{_SUFFIX}").read_text(), words)),
        bake: _insert(bake, r'(?m)^(?:      "adapter-.+\n)+', f'      "{service}",\n'),
        prometheus: _among(prometheus, r"(?m)(?<=        names:\n)(?:          - .+\n)+", service),
        kustomization: _insert(kustomization, r"(?m)^(?:  - adapter-.+\n)+", f"  - {service}.yaml\n"),
        root / "secrets" / service / ".gitkeep": "",
        base / f"{service}.yaml": _fill((templates / f"k8s.yaml{_SUFFIX}").read_text(), words),
        **{
            path: path.read_text() + _fill((templates / f"{template}.yaml{_SUFFIX}").read_text(), words)
            for path, template in (
                (components / "tls-cert-manager" / "services.yaml", "certificate"),
                (components / "external-secrets" / "services.yaml", "external-secret"),
            )
        },
    }


def _compose(path: Path, service: str, entry: str) -> str:
    """compose.yaml with a further adapter behind the others, its secrets and its volume."""
    text = _insert(path, r"(?ms)^  adapter-.+?\n\n(?!  adapter-)", entry)
    text = _insert(path, r"(?m)^secrets:\n(?:  .+\n)*", f"  {service}: {{file: ./secrets/{service}}}\n", text)
    return _insert(path, r"(?m)^volumes:\n(?:  .+\n)*", f"  {service}: {{}}\n", text)


def _insert(path: Path, after: str, line: str, text: str | None = None) -> str:
    """The file's text, or `text` in its place, with `line` put after what the pattern `after` finds."""
    text = path.read_text() if text is None else text
    found = re.search(after, text)
    if not found:
        raise Refused(f"{path} is not laid out as expected: {after} is not in it")
    return text[: found.end()] + line + text[found.end() :]


def _among(path: Path, names: str, name: str) -> str:
    """The file's text with a further item in the sorted YAML list that the pattern `names` finds."""
    text = path.read_text()
    found = re.search(names, text)
    if not found:
        raise Refused(f"{path} is not laid out as expected: {names} is not in it")
    lines = found[0].splitlines(keepends=True)
    lines.append(lines[0].partition("- ")[0] + f"- {name}\n")
    return text[: found.start()] + "".join(sorted(lines)) + text[found.end() :]


def _fill(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) != 1 or not arguments[0]:
            raise Refused("say its name: make adapter NAME=acme")
        written = make(arguments[0])
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    for path in written:
        print(path.relative_to(ROOT))
    module = arguments[0].replace("-", "_")
    print(_NEXT.replace("@NAME@", arguments[0]).replace("@MODULE@", module))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
