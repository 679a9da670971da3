"""Stops one thread of a process while the others go on, as a hanging device or a lost lock would."""

import contextlib
import ctypes
import os
import pathlib

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17  # sys/ptrace.h
WALL = 0x40000000  # waitpid: threads too
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def threads(pid, name):
    return [int(task.name) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
            if (task / "comm").read_text().strip() == name]


def freeze(pid, name):
    """Enter and leave it on one thread: only that may trace."""
    frozen = threads(pid, name)
    assert frozen, f"process {pid} has no thread {name}"
    for thread in frozen:
        ptrace(SEIZE, thread)
        ptrace(INTERRUPT, thread)
        os.waitpid(thread, WALL)
    return frozen


def thaw(frozen):
    for thread in frozen:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            ptrace(DETACH, thread)
