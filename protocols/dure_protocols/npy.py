"""Arrays as Flower's own runtimes carry them: the bytes of a .npy file, with type and shape told beside it."""

import io
import math

import numpy as np

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.frames import AnyArray, check_form, little_endian


def array_of_npy(content: bytes, dtype: str, shape: tuple[int, ...]) -> AnyArray:
    """The read-only array in a .npy file's bytes, without a copy.

    dtype, shape: as the sender declares them. The file's header must be the very bytes that numpy writes for these, so
    that none of it is parsed and no length in it is believed. Raises MessageError.
    """
    try:
        check_form(dtype, shape)
    except MisuseError as error:
        raise MessageError(f"an array breaks a rule of the link: {error}") from error
    file, form = io.BytesIO(), little_endian(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": form.str, "fortran_order": False, "shape": shape})
    header = file.getvalue()
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape) * form.itemsize:
        raise MessageError(f"an array of {dtype}{shape} was expected, {len(content)} bytes came that are none")
    array: AnyArray = np.frombuffer(memoryview(content)[len(header) :], form).reshape(shape)
    return array
