"""The files that pages load: shared, a role's own and vendored, each with an integrity value. Nothing comes from
elsewhere."""

import base64
import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from dure_protocols.errors import DureError

SHARED = Path(__file__).parent / "assets"
URL = "/assets"


class AssetError(DureError):
    """A vendored file is not the one that was published."""


@dataclass(frozen=True)
class Asset:
    """A file that a page loads. `url` changes with the content; `integrity` goes on the tag."""

    url: str
    integrity: str


def load_assets(folder: Path) -> dict[str, Asset]:
    """Every shared asset and every one of a role's folder, by its path there. Raises AssetError if a vendored file was
    changed."""
    files = (file for place in (SHARED, folder) for file in place.iterdir() if file.is_file())
    assets = {file.name: _asset(file, file.name) for file in files}
    for name in _vendored(folder / "vendor"):
        assets[f"vendor/{name}"] = _asset(folder / "vendor" / name, f"vendor/{name}")
    return assets


class AssetFiles(StaticFiles):
    """Serves the shared folder and a role's. URLs name the content, so browsers may keep it for good."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self.all_directories = [folder, SHARED]

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        response = await super().get_response(path, scope)
        if Headers(scope=scope).get("range") is None and response.status_code == 200:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def _vendored(folder: Path) -> list[str]:
    """The names of the third-party files, each held against what was published."""
    if not folder.is_dir():
        return []
    with (folder / "VENDORED.toml").open("rb") as file:
        listed = tomllib.load(file)["file"]
    for each in listed:
        if hashlib.sha256((folder / each["name"]).read_bytes()).hexdigest() != each["sha256"]:
            raise AssetError(
                f"vendor/{each['name']} is not {each['package']} {each['version']} as published: install Dure again"
            )
    return [each["name"] for each in listed]


def _asset(file: Path, name: str) -> Asset:
    digest = hashlib.sha256(file.read_bytes()).digest()
    return Asset(f"{URL}/{name}?v={digest.hex()[:12]}", f"sha256-{base64.b64encode(digest).decode()}")
