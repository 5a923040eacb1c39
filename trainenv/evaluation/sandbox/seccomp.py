"""A filter of system calls for sandboxed programs: no processes, signals, sockets or namespaces.

It is a program of the kernel's packet filter (seccomp, classic BPF). Refused calls fail with EPERM.
Filters exist for x86-64 and AArch64, because the numbers of system calls differ; elsewhere the
limit on the number of processes has to do.
"""

from __future__ import annotations

import errno
import platform
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    "x86_64": (
        *(41, 53),  # socket, socketpair
        *(56, 57, 58),  # clone, fork, vfork
        *(62, 129, 200, 234, 297, 424),  # signals to others
        *(101, 310, 311, 312),  # ptrace and its kin
        *(155, 161, 165, 166, 272, 308, 428, 429, 430, 432, 442),  # mounts and namespaces
        *(175, 246, 248, 249, 250, 298, 304, 313, 320, 321, 323, 425),  # other parts of the kernel
    ),
    "aarch64": (
        *(198, 199),
        *(220,),
        *(129, 130, 131, 138, 240, 424),
        *(117, 270, 271, 272),
        *(41, 51, 40, 39, 97, 268, 428, 429, 430, 432, 442),
        *(105, 104, 217, 218, 219, 241, 265, 273, 294, 280, 282, 425),
    ),
}
_CLONE3 = 435  # fails as if it did not exist, so that the C library tries `clone`
_X32 = 0x40000000  # numbers of x86-64's second set of calls start here

_LOAD = 0x20  # load a word
_EQUAL = 0x15  # jump if equal
_AT_LEAST = 0x35  # jump if greater or equal
_RETURN = 0x06
_KILL = 0x80000000
_ERROR = 0x00050000
_ALLOW = 0x7FFF0000


def program(machine: str = "") -> bytes:
    """Return the filter for a machine, this one by default; empty where there is none."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        return b""
    steps = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    for number in _REFUSED[machine]:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
