"""TOML texts that people write: one way to read them, and one error for all that can be wrong with one."""

import re
import tomllib

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
