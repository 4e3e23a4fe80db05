"""Targets of model packages: the file with its signed manifest, the wheel in it, and the notes about fetching."""

from collections.abc import Iterator
from functools import partial

from pydantic import BaseModel

from dure_client.packages.fetch import Told, Wish, read_note
from dure_models.packages import WheelError, checked_files
from dure_protocols.model_package import ModelPackage, ModelPackageError
from tests.fuzz.mutate import JSON
from tests.fuzz.target import Target
from tests.fuzz.targets.files import JSON_TEXT, FromFile
from tests.fuzz.targets.scratch import scratch
from tests.model_packages.made import STRANGER, pump, signed

WHEEL_BYTES = 1 << 20
"""Inflating has a window and buffers of its own; a wheel's few texts are read whole, and the shared code digested."""
PACKAGE = 64
"""A byte of a zip file's directory becomes a part of an object; a byte of a manifest, a part of a listed problem."""


def model_targets() -> Iterator[Target]:
    """The file, the wheel, the notes between a command and the agent."""
    packages = [pump(), pump(author=STRANGER, columns=("flow", "heat")), signed(b"no wheel")]

    def check(package: ModelPackage) -> None:
        assert package in packages, "what nobody signed was taken"

    yield Target(
        "model/package",
        ModelPackage.from_bytes,
        (ModelPackageError,),
        [package.to_bytes() for package in packages],
        JSON_TEXT,
        ModelPackage.to_bytes,
        check=check,
        mutators=JSON,
    )
    manifest = pump().manifest
    yield Target(
        "model/wheel",
        lambda data: checked_files(data, manifest),
        (WheelError,),
        [pump().wheel, pump({"pump_model/more.json": b"{}" * 500}).wheel, pump({"../evil": b""}).wheel],
        PACKAGE,
        check=_check_files,
        base_bytes=WHEEL_BYTES,
    )
    folder = scratch("model-notes")
    wish, told = Wish(id="01" * 16, wanted="pump"), Told(id="01" * 16, digests=("ab" * 32,), problem="no")
    notes: tuple[tuple[str, BaseModel], ...] = (("wish", wish), ("told", told))
    for name, note in notes:
        file = folder / name
        yield Target(
            f"model/{name}",
            FromFile(file, partial(read_note, file, type(note))),
            (),
            [note.model_dump_json().encode()],
            JSON_TEXT,
            mutators=JSON,
        )


def _check_files(files: dict[str, bytes]) -> None:
    assert all(".." not in path and not path.startswith("/") for path in files)
