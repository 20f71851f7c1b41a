"""The version of this platform, from the installed package or from the checkout."""

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Final

_PACKAGE: Final = "lilith-messaging"


def platform_version() -> str:
    """Return the version, like ``0.1.0``."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # A checkout whose Python does not know it.
        project = Path(__file__).parents[1] / "pyproject.toml"
        version: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return version
