"""Finds the decoders in the source, and sees which of them the targets' seeds reach: none may go without a target.

A function is a decoder if it reads bytes or text by one of the primitives below, or if its docstring says that it
raises MessageError, the error of bytes that are not what they claim to be. A class is one if it is written field by
field (`Fields`) or is a pydantic model of the protocol: both read themselves.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

from pydantic import BaseModel

import dure_protocols
from dure_protocols.fields import Fields

ROOT = Path(__file__).parent.parent.parent
PACKAGES = {
    "dure_protocols": ROOT / "protocols",
    "dure_models": ROOT / "models",
    "dure_client": ROOT / "client",
    "dure_server": ROOT / "server",
}
PRIMITIVES = frozenset(
    {
        *("Reader", "struct.unpack", "frombuffer", "fromfile", "b64decode", "urlsafe_b64decode"),
        *("json.loads", "tomllib.loads", "parse_toml", "model_validate", "model_validate_json"),
        *("load_pem_private_key", "load_pem_x509_certificate", "load_pem_x509_csr", "from_public_bytes"),
        *("decrypt", "decapsulate"),
    }
)


def found_functions() -> dict[str, str]:
    """Every function that is a decoder, as "module:qualified name", and why it is one."""
    found: dict[str, str] = {}
    for package, folder in PACKAGES.items():
        for file in sorted((folder / package).rglob("*.py")):
            module = ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            found |= {f"{module}:{name}": why for name, why in decoders_in(ast.parse(file.read_text(encoding="utf-8")))}
    return found


def decoders_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The decoders of one module: qualified name, and why it is one."""
    yield from _within(tree, "")


def _within(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _within(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            used = sorted({name for node in ast.walk(child) for name in _called(node) & PRIMITIVES})
            if used:
                yield f"{prefix}{child.name}", f"calls {', '.join(used)}"
            elif "MessageError" in (ast.get_docstring(child) or ""):
                yield f"{prefix}{child.name}", "says that it raises MessageError"


def _called(node: ast.AST) -> set[str]:
    """The names of what a node calls: of `struct.unpack`, "unpack" and "struct.unpack"."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return {name}
        case ast.Call(func=ast.Attribute(value=ast.Name(id=holder), attr=name)):
            return {name, f"{holder}.{name}"}
        case ast.Call(func=ast.Attribute(attr=name)):
            return {name}
    return set()


def found_classes() -> dict[str, type]:
    """Every class of the protocol that reads itself, by "module:name"; not those that others are made of."""
    classes = {each for module in _modules(dure_protocols) for each in vars(module).values() if isinstance(each, type)}
    reading = {each for each in classes if issubclass(each, Fields | BaseModel)}
    bases = {base for each in reading for base in each.__mro__[1:]}
    return {f"{each.__module__}:{each.__qualname__}": each for each in reading - bases}


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(info.name)


class Reached:
    """What ran: functions as "module:qualified name", and the classes whose class methods did."""

    def __init__(self) -> None:
        self.functions: set[str] = set()
        self.classes: set[type] = set()

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """A profile function."""
        if event != "call":
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith("dure_"):
            self.functions.add(f"{module}:{frame.f_code.co_qualname}")
        cls = frame.f_locals.get("cls")
        if isinstance(cls, type):
            self.classes.add(cls)


@contextmanager
def watching() -> Iterator[Reached]:
    """Note what runs in the block, in this thread."""
    reached, before = Reached(), sys.getprofile()
    sys.setprofile(reached.note)
    try:
        yield reached
    finally:
        sys.setprofile(before)


def inside_models(classes: set[type]) -> set[type]:
    """The pydantic models among these, and those that their fields hold."""
    found: set[type] = set()
    waiting = [cls for cls in classes if issubclass(cls, BaseModel)]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.add(cls)
            waiting += [inner for field in cls.model_fields.values() for inner in _models_in(field.annotation)]
    return found


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
