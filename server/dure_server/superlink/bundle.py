"""The Flower app bundle: a pyproject.toml and two modules that import what is installed on either side.

It carries no code of Dure's, so that a firm runs what it installed, and is the same for every job, so that a firm that
has reviewed and signed it once (`flower-supernode --trusted-entities`) has done so for good.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Final

from dure_protocols.errors import DureError
from dure_server.superlink.app import JOB_KEY

PACKAGE: Final = "dure_on_superlink"
# Flower looks for an assignment to `app` in the source before it runs anything.
_MODULE: Final = '''"""Runs {where}, and is what is installed there."""

from {module} import app as installed

app = installed
'''
_PROJECT: Final = """\
[project]
name = "dure-on-superlink"
version = "{version}"
description = "Dure's installed apps on a stock Flower SuperLink"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "dure"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
{key} = ""
"""


class BundleError(DureError):
    """The bundle's folder is not empty."""


def write_bundle(folder: Path) -> Path:
    """Write the bundle into an empty or new folder, for `flwr run FOLDER`. Raises BundleError."""
    package = folder / PACKAGE
    if folder.exists() and any(folder.iterdir()):
        raise BundleError(f"{folder} is not empty: name a new folder")
    package.mkdir(parents=True)
    text = _PROJECT.format(version=version("dure"), package=PACKAGE, key=JOB_KEY)
    (folder / "pyproject.toml").write_text(text)
    (package / "__init__.py").write_text('"""Dure on a stock SuperLink."""\n')
    (package / "server.py").write_text(_MODULE.format(where="at the operator", module="dure_server.superlink.app"))
    (package / "client.py").write_text(_MODULE.format(where="at each firm", module="dure_client.supernode_app"))
    return folder
