"""Writes what is in each image: `make sbom`, as CycloneDX JSON in dist/sbom, one file for each image.

    make sbom ARGS="correlator adapter-dc09"    some of them

Of an image that is built: the Python packages of its environment, as cyclonedx-py finds them there,
Debian's packages of its base, and the interpreter. The files are checked against CycloneDX's schema.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.images import ImagesError, docker, engine, names
from scripts.layer import HOME
from scripts.services import ROOT

FOLDER = ROOT / "dist" / "sbom"

_TOOLS = ROOT / ".cache" / "sbom-tools"
_TOOL = "cyclonedx-bom==7.5.0"
_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
for path in sys.argv[1:]:
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(path).read()):
        sys.exit(f"{path}: {error}")
"""


def tools() -> Path:
    """The `bin` folder of an environment with cyclonedx-py, made on first use. Raises CalledProcessError."""
    done = _TOOLS / f"{_TOOL}.done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(_TOOLS)], check=True)
        pip = [str(_TOOLS / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, _TOOL, "cyclonedx-python-lib[json-validation]"], check=True)
        done.touch()
    return _TOOLS / "bin"


def validate(paths: Sequence[Path]) -> None:
    """Check files against the schema. Raises `ImagesError` for the first that is wrong."""
    command = [str(tools() / "python"), "-c", _VALIDATE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImagesError(done.stderr.strip())


def write(name: str) -> Path:
    """Write the bill of materials of a built image; returns its path. Raises `ImagesError`."""
    [image] = json.loads(docker("image", "inspect", f"tocsin/{name}"))
    labels = image["Config"]["Labels"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        container = docker("container", "create", f"tocsin/{name}")
        try:
            _copy_out(container, HOME, folder)
            _copy_out(container, "/var/lib/dpkg/status", folder)
        finally:
            docker("container", "rm", "--force", container)
        environment = folder / HOME.strip("/")
        bom = _python_packages(environment)
        added = [_interpreter(environment), *_debian_packages(folder / "status")]
    root = f"tocsin/{name}"
    bom["metadata"]["component"] = {
        "bom-ref": root,
        "type": "container",
        "name": root,
        "version": labels["org.opencontainers.image.version"],
        "licenses": [{"license": {"id": labels["org.opencontainers.image.licenses"]}}],
        "properties": [
            {"name": f"tocsin:{key}", "value": labels[f"org.opencontainers.image.{key}"]}
            for key in ("revision", "base.name")
        ],
    }
    bom["components"] = [*bom.get("components", ()), *added]
    edges = [edge for edge in bom.get("dependencies", ()) if edge["ref"] != root]
    edges += [{"ref": each["bom-ref"]} for each in added]
    below = {ref for edge in edges for ref in edge.get("dependsOn", ())}
    direct = sorted({each["bom-ref"] for each in bom["components"]} - below)
    bom["dependencies"] = [{"ref": root, "dependsOn": direct}, *edges]
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.cdx.json"
    path.write_text(json.dumps(bom, indent=1) + "\n")
    return path


def _copy_out(container: str, path: str, folder: Path) -> None:
    archive = folder / "archive.tar"
    with archive.open("wb") as file:
        done = subprocess.run([engine(), "cp", f"{container}:{path}", "-"], stdout=file, check=False)
    if done.returncode:
        raise ImagesError(f"{path} of {container} could not be read; see above")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="tar")
    archive.unlink()


def _python_packages(environment: Path) -> dict[str, Any]:
    # Only what is installed is looked at. The image's own interpreter is not here, so this one looks,
    # where it would find packages of its own version.
    python = environment / "bin" / "python"
    python.unlink()
    python.symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    [installed] = (environment / "lib").iterdir()
    installed.rename(environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
    command = [str(tools() / "cyclonedx-py"), "environment", "--spec-version", "1.6", "--output-reproducible"]
    done = subprocess.run([*command, str(environment)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"cyclonedx-py: {done.stderr.strip()}")
    bom: dict[str, Any] = json.loads(done.stdout)
    return bom


def _interpreter(environment: Path) -> dict[str, str]:
    found = re.search(r"^version = (\S+)$", (environment / "pyvenv.cfg").read_text(), re.MULTILINE)
    version = found[1] if found else ""
    purl = f"pkg:generic/python@{version}"
    return {"bom-ref": purl, "type": "platform", "name": "python", "version": version, "purl": purl}


def _debian_packages(status: Path) -> list[dict[str, str]]:
    components = []
    for paragraph in status.read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={fields['Architecture']}"
            components.append(
                {"bom-ref": purl, "type": "library", "name": name, "version": version, "purl": purl}
            )
    return components


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("make sbom", description="Write what is in each image.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an image; by default all")
    given = parser.parse_args(arguments)
    try:
        paths = [write(name) for name in given.names or names()]
        validate(paths)
    except ImagesError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{_TOOL} could not be installed: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path.relative_to(ROOT)) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
