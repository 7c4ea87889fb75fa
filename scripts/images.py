"""Builds a container image for each service, or for those named: `make images ARGS=correlator`.

Images are named tocsin/SERVICE. $DOCKER is the command (by default docker; podman serves too).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from scripts.services import ROOT, services


def main(wanted: list[str]) -> int:
    names = [service.name for service in services()]
    if unknown := sorted(set(wanted) - set(names)):
        print(f"no service is called {', '.join(unknown)}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    docker = os.environ.get("DOCKER", "docker")
    if shutil.which(docker) is None:
        print(f"building images needs {docker} (on Debian: apt-get install docker.io)", file=sys.stderr)
        return 2
    for name in wanted or names:
        print(f"tocsin/{name}", flush=True)
        command = [docker, "build", "--quiet", "-f", "services/Dockerfile", "-t", f"tocsin/{name}"]
        built = subprocess.run([*command, "--build-arg", f"SERVICE={name}", "."], cwd=ROOT, check=False)
        if built.returncode:
            return built.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
