"""TOML texts that people write: one way to read them, and one error for all that can be wrong with one."""

import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError

_NESTED_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){100}""")


def parse_toml(text: str) -> dict[str, object]:
    """The tables of a TOML text. Raises tomllib.TOMLDecodeError for a text that is none, and for one that goes too far.

    tomllib itself raises other errors for brackets a thousand deep and for integers of thousands of digits, and takes
    memory that grows with the square of a dotted key's parts.
    """
    if _NESTED_KEY.search(text):
        raise tomllib.TOMLDecodeError("a key has a hundred parts or more")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise tomllib.TOMLDecodeError("brackets stand in brackets too deep") from error
    except ValueError as error:
        raise tomllib.TOMLDecodeError("a number has too many digits") from error


def field_problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Each problem of a file that is a `model`, where it is and what to do, for whoever wrote the file."""
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(map(str, each["loc"]))
        said = no_such_field(model, each["loc"]) if each["type"] == "extra_forbidden" else each["msg"]
        yield f"{place}: {said}" if place else said


def no_such_field(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """What to do about a field that a file's `model` does not have. place: its name, behind the tables it stands in."""
    *tables, name = map(str, place)
    table = f"[{tables[0]}]" if tables else ""
    if tables and name in model.model_fields:
        return f"no such field here: the line stands below {table} and belongs above the first table of the file"
    homes = [home for home, info in model.model_fields.items() if name in _fields_in(info.annotation)]
    if not tables and homes:
        return f"no such field here: the line belongs below [{homes[0]}]"
    here = model.model_fields[tables[0]].annotation if tables and tables[0] in model.model_fields else model
    if close := get_close_matches(name, _fields_in(here), 1):
        return f"no such field; did you mean {close[0]}?"
    if tables and (close := get_close_matches(name, model.model_fields, 1)):
        return (
            f"no such field; did you mean {close[0]}? The line stands below {table} and belongs above the first table "
            "of the file"
        )
    return f"no such field; there are: {', '.join(_fields_in(here))}"


def _fields_in(annotation: object) -> list[str]:
    """The fields of the model that an annotation is about, such as `tuple[Shift, ...]` or `Files | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return [name for part in get_args(annotation) for name in _fields_in(part)]
