"""The system calls that a trainer is refused, as a program for the kernel's filter (seccomp-bpf).

Namespaces cut off files and network; the filter adds what they leave open: further processes (so that limits on one
process are limits on the trainer), memory that no limit counts, sockets that no network namespace holds (vsock of a
virtual machine), and parts of the kernel that training has no use for.

The program is that of `struct sock_filter` in linux/filter.h, over `struct seccomp_data` in linux/seccomp.h.
"""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Numbers of system calls: (x86_64, aarch64); None where the architecture has no such call.
_DENIED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "memfd_create": (319, 279),  # memory beside RLIMIT_DATA
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),  # queues hold kernel memory
    "semget": (64, 190),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "keyctl": (250, 219),  # the kernel's keyrings are in no namespace
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),  # does what this filter refuses, out of its sight
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    "sched_setaffinity": (203, 122),  # the launcher has chosen the processors
    "io_setup": (206, 0),  # counted for the host as a whole, as are the next
    "fanotify_init": (300, 262),
    "fallocate": (285, 47),  # takes a disk in no time
}


@dataclass(frozen=True)
class _Architecture:
    """How a kernel names an architecture, and the calls whose arguments decide."""

    audit_number: int
    column: int
    clone: int
    socket: int
    mmap: int


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {
    "x86_64": _Architecture(0xC000003E, 0, clone=56, socket=41, mmap=9),
    "aarch64": _Architecture(0xC00000B7, 1, clone=220, socket=198, mmap=222),
}
_CLONE3: Final = 435
_X32_CALLS: Final = 0x40000000  # a second numbering of x86_64's calls begins here
_CLONE_THREAD: Final = 0x10000
_AF_UNIX: Final = 1
_SHARED_ANONYMOUS: Final = 0x21  # MAP_SHARED | MAP_ANONYMOUS: memory beside RLIMIT_DATA
_GROWS_DOWN: Final = 0x100  # counted as a stack, which is beside RLIMIT_DATA, too

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def knows(machine: str) -> bool:
    """Whether there is a filter for a machine, as `platform.machine()` names it."""
    return machine in _ARCHITECTURES


def filter_program(machine: str) -> bytes:
    """The filter for a machine that `knows` is true of."""
    here = _ARCHITECTURES[machine]
    lines = [
        _step(_LOAD, _ARCHITECTURE_AT),
        *_when(_IF_EQUAL, here.audit_number, [], otherwise=[_end(_KILL)]),
        _step(_LOAD, _NUMBER_AT),
        *_when(_IF_AT_LEAST, _X32_CALLS, [_refuse(errno.EPERM)]),
        # The C library falls back on clone, whose flags can be seen.
        *_when(_IF_EQUAL, _CLONE3, [_refuse(errno.ENOSYS)]),
    ]
    for numbers in _DENIED.values():
        if (number := numbers[here.column]) is not None:
            lines += _when(_IF_EQUAL, number, [_refuse(errno.EPERM)])
    thread_or_not = [_argument(0), *_when(_IF_ANY_BIT, _CLONE_THREAD, [_end(_ALLOW)]), _refuse(errno.EPERM)]
    local_or_not = [_argument(0), *_when(_IF_EQUAL, _AF_UNIX, [_end(_ALLOW)]), _refuse(errno.EAFNOSUPPORT)]
    not_counted = [
        *_when(_IF_ANY_BIT, _GROWS_DOWN, [_refuse(errno.EPERM)]),
        _step(_AND, _SHARED_ANONYMOUS),
        *_when(_IF_EQUAL, _SHARED_ANONYMOUS, [_refuse(errno.EPERM)]),
    ]
    lines += _when(_IF_EQUAL, here.clone, thread_or_not)
    lines += _when(_IF_EQUAL, here.socket, local_or_not)
    lines += _when(_IF_EQUAL, here.mmap, [_argument(3), *not_counted, _end(_ALLOW)])
    return b"".join([*lines, _end(_ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(condition: int, value: int, then: list[bytes], *, otherwise: list[bytes] | None = None) -> list[bytes]:
    """Run `then` if the condition holds of what is loaded, else `otherwise`; one of them is empty, and the other ends
    the program or goes on with the next line."""
    if otherwise:
        return [_step(condition, value, if_true=len(otherwise)), *otherwise]
    return [_step(condition, value, if_false=len(then)), *then]


def _argument(index: int) -> bytes:
    """Load the lower half of a call's argument; both architectures are little-endian."""
    return _step(_LOAD, _ARGUMENTS_AT + 8 * index)


def _end(verdict: int) -> bytes:
    return _step(_RETURN, verdict)


def _refuse(number: int) -> bytes:
    return _end(_REFUSE | number)
