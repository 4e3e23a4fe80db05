"""`make bundle`: the agent as one folder for a site without a network. `python -m dure_lab.bundle --key KEY`.

    wheels/            dure's own wheel and all that `dure[agent]` needs, at the versions of constraints.txt
    requirements.txt   each wheel's version and SHA-256, for `pip install --require-hashes`
    sbom.cdx.json      CycloneDX: version, purl, licence and SHA-256 of each wheel
    INSTALL.txt        how to check and install it
    SHA256SUMS         of every file above
    SHA256SUMS.sig     its Ed25519 signature by the packer's release key, for `openssl pkeyutl -verify`

The same wheels and the same key give the same bytes.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dure_protocols.errors import DureError

INSTALL = """\
Dure's agent {version}, to be installed without a network. Needs {python} on {platform}.

1. Get the packer's public key, release.pub, by another way than this folder, and check in this folder that the sums are
   the packer's and the files those that were summed:

    openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig
    sha256sum --check --strict --quiet SHA256SUMS

   The first says "Signature Verified Successfully", the second nothing. If not, install nothing and ask the packer.

2. Install into an environment of its own. pip compares every wheel's hash once more:

    python3 -m venv /opt/dure
    /opt/dure/bin/pip install --no-index --find-links wheels --require-hashes -r requirements.txt
    /opt/dure/bin/dure-agent --help

What is in it, with licences, is in sbom.cdx.json (CycloneDX 1.6).
"""


class BundleError(DureError):
    """The bundle cannot be made of what was given."""


@dataclass(frozen=True)
class Wheel:
    """One wheel, as its own metadata describes it."""

    path: Path
    name: str
    version: str
    licence: str
    sha256: str


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's metadata. Raises BundleError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(
                each for each in archive.namelist() if each.count("/") == 1 and each.endswith(".dist-info/METADATA")
            )
            metadata = BytesHeaderParser().parsebytes(archive.read(inner))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise BundleError(f"{path.name} is not a wheel: no METADATA in it. Remove it or build it again") from error
    classifiers = [
        each.rsplit(" :: ", 1)[-1] for each in metadata.get_all("Classifier", []) if each.startswith("License ::")
    ]
    stated = (metadata["License-Expression"] or metadata["License"] or "").strip().partition("\n")[0]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    licence = stated or ", ".join(classifiers) or "not stated"
    return Wheel(path, canonicalize_name(metadata["Name"]), metadata["Version"], licence, digest)


def check_pins(wheels: list[Wheel], constraints: Path) -> None:
    """Raise BundleError unless every wheel is of the version that constraints.txt pins, where it pins one."""
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, filter(None, lines))}
    for wheel in wheels:
        pin = pins.get(canonicalize_name(wheel.name))
        if pin is not None and not pin.contains(Version(wheel.version), prereleases=True):
            raise BundleError(f"{wheel.name} is {wheel.version}, constraints.txt says {pin}: put that version there")


def sbom(wheels: list[Wheel], version: str) -> str:
    """CycloneDX 1.6 as JSON. Without a time, and its serial number is made of the hashes: equal wheels, equal bytes."""
    bundle = Component(name="dure-agent-bundle", version=version, type=ComponentType.APPLICATION, bom_ref="bundle")
    parts = []
    for wheel in wheels:
        purl = PackageURL("pypi", name=wheel.name, version=wheel.version)
        parts.append(
            Component(
                name=wheel.name,
                version=wheel.version,
                type=ComponentType.LIBRARY,
                bom_ref=purl.to_string(),
                purl=purl,
                licenses=[LicenseFactory().make_from_string(wheel.licence)],
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            )
        )
    bom = Bom(components=parts, serial_number=uuid5(NAMESPACE_URL, " ".join(wheel.sha256 for wheel in wheels)))
    bom.metadata.component = bundle
    bom.register_dependency(bundle, parts)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def read_key(path: Path) -> Ed25519PrivateKey:
    """The release key, PEM without a password. Raises BundleError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path}: no readable key. Make one: openssl genpkey -algorithm ed25519 -out {path}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: expected an Ed25519 key. Make one: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def write_bundle(source: Path, out: Path, key: Ed25519PrivateKey, constraints: Path) -> list[Wheel]:
    """Make the folder `out`, which must be new, of the wheels in `source`. Raises BundleError."""
    if out.exists():
        raise BundleError(f"{out} is there already: name a new folder with --out")
    wheels = sorted((read_wheel(each) for each in source.glob("*.whl")), key=lambda wheel: wheel.name)
    own = next((wheel for wheel in wheels if wheel.name == "dure"), None)
    if own is None:
        raise BundleError(f"no wheel of dure in {source}: build one with `pip wheel --no-deps --wheel-dir {source} .`")
    if len({wheel.name for wheel in wheels}) < len(wheels):
        raise BundleError(f"several wheels of one package in {source}: leave one of each")
    check_pins(wheels, constraints)

    (out / "wheels").mkdir(parents=True)
    for wheel in wheels:
        shutil.copyfile(wheel.path, out / "wheels" / wheel.path.name)
    lines = (
        f"{wheel.name}{'[agent]' if wheel is own else ''}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in wheels
    )
    (out / "requirements.txt").write_text("".join(lines))
    (out / "sbom.cdx.json").write_text(sbom(wheels, own.version))
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    (out / "INSTALL.txt").write_text(INSTALL.format(version=own.version, python=python, platform=sys.platform))

    sums = {each.relative_to(out).as_posix(): _sha256(each) for each in out.rglob("*") if each.is_file()}
    stated = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
    (out / "SHA256SUMS").write_bytes(stated)
    (out / "SHA256SUMS.sig").write_bytes(key.sign(stated))
    return wheels


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheels(project: Path, folder: Path, constraints: Path) -> None:
    """Build dure's wheel and download what its agent needs, wheels alone. Raises BundleError; pip says why."""
    pip = [sys.executable, "-m", "pip"]
    try:
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, project], check=True)
        (own,) = folder.glob("dure-*.whl")
        pinned: list[str | Path] = ["--only-binary", ":all:", "--constraint", constraints, "--dest", folder]
        subprocess.run([*pip, "download", "--quiet", *pinned, f"{own}[agent]"], check=True)
    except subprocess.CalledProcessError as error:
        raise BundleError(
            "pip could not get every wheel, see above. Check network and index, or give --wheels"
        ) from error


def main() -> int:
    """Make a bundle; called by `make bundle`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make bundle", description="The agent for a site without a network.")
    parser.add_argument("--key", type=Path, required=True, help="release key: Ed25519, PEM, made with openssl genpkey")
    parser.add_argument("--out", type=Path, default=Path("dure-bundle"), help="folder to make")
    parser.add_argument(
        "--wheels", type=Path, help="folder with all wheels, dure's too; left out: built and downloaded"
    )
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"), help="the exact versions")
    given = parser.parse_args()
    try:
        key = read_key(given.key)
        with tempfile.TemporaryDirectory() as scratch:
            source = given.wheels or Path(scratch)
            if given.wheels is None:
                fetch_wheels(Path.cwd(), source, given.constraints)
            wheels = write_bundle(source, given.out, key, given.constraints)
    except DureError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(each.stat().st_size for each in given.out.rglob("*") if each.is_file())
    print(f"{given.out}: {len(wheels)} wheels, {size / 1e6:.0f} MB. See {given.out}/INSTALL.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
