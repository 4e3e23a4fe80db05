"""The files that pages load: ours and vendored, each with an integrity value. Nothing comes from elsewhere."""

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

FOLDER = Path(__file__).parent / "assets"
URL = "/assets"
_OWN = ("console.css", "console.js", "icon.svg")


class AssetError(DureError):
    """A vendored file is not the one that was published."""


@dataclass(frozen=True)
class Asset:
    """A file that a page loads. `url` changes with the content; `integrity` goes on the tag."""

    url: str
    integrity: str


def load_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Every asset by its path under the folder. Raises AssetError if a vendored file was changed."""
    assets = {name: _asset(folder, name) for name in _OWN}
    with (folder / "vendor" / "VENDORED.toml").open("rb") as file:
        vendored = tomllib.load(file)["file"]
    for each in vendored:
        name = f"vendor/{each['name']}"
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != each["sha256"]:
            raise AssetError(f"{name} is not {each['package']} {each['version']} as published: install Dure again")
        assets[name] = _asset(folder, name)
    return assets


class AssetFiles(StaticFiles):
    """Serves the folder. URLs name the content, so browsers may keep it for good."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        response = await super().get_response(path, scope)
        if Headers(scope=scope).get("range") is None and response.status_code == 200:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def _asset(folder: Path, name: str) -> Asset:
    digest = hashlib.sha256((folder / name).read_bytes()).digest()
    return Asset(f"{URL}/{name}?v={digest.hex()[:12]}", f"sha256-{base64.b64encode(digest).decode()}")
