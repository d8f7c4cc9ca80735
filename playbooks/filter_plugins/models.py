"""The manifests of models: read, and turned into the files that the hosts of a service hold."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


def model_manifests(directories: Iterable[str]) -> dict[str, Any]:
    """The manifests by their file's name; the first of a name counts, so the operator's directory comes first.

    A file that is not YAML is the text of its error, for preflight to refuse.
    """
    found: dict[str, Any] = {}
    for path in (path for directory in directories for path in sorted(Path(directory).glob("*.yml"))):
        if path.stem not in found:
            try:
                found[path.stem] = yaml.safe_load(path.read_text())
            except (OSError, ValueError, yaml.YAMLError) as error:
                found[path.stem] = " ".join(str(error).split())
    return found


def models_of(manifests: Mapping[str, Mapping[str, Any]], service: str) -> list[dict[str, Any]]:
    """The model files of a service, in the order of the manifests' names."""
    return [
        {
            "file": manifest.get("file") or manifest["source"].rpartition("/")[2],
            **{key: manifest[key] for key in ("source", "sha256", "bytes")},
        }
        for _, manifest in sorted(manifests.items())
        if service in manifest["for"]
    ]


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"model_manifests": model_manifests, "models_of": models_of}
