"""System calls that Python does not offer: clone into namespaces, mount, capabilities, Landlock, seccomp.

Sources: the manual pages clone(2), mount(2), capabilities(7), landlock(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct

# PyDLL keeps the interpreter lock during calls: `clone` must not return without it in the child.
_LIBC = ctypes.PyDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

_NR_CLONE = {"x86_64": 56, "aarch64": 220}
_NR_LANDLOCK_CREATE, _NR_LANDLOCK_ADD, _NR_LANDLOCK_RESTRICT = 444, 445, 446  # the same on both architectures
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 38, 47, 4, 2
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock access rights, by bit.
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIR
_READ_AND_WRITE = _READ | _FILE_RIGHTS | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
_LANDLOCK_CREATE_VERSION = 1


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone_into_namespaces() -> int:
    """Like `os.fork`, but the child is process 1 of a new pid namespace and has its own mount and ipc namespaces."""
    flags = _CLONE_NEWPID | _CLONE_NEWNS | _CLONE_NEWIPC | signal.SIGCHLD
    pid = _check(_LIBC.syscall(_NR_CLONE[platform.machine()], flags, 0, 0, 0, 0), "clone")
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


def mount_private_tmpfs(path: str, size_bytes: int, inodes: int) -> None:
    options = f"size={size_bytes},nr_inodes={inodes},mode=0700".encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(_LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options), "mount tmpfs")


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent ends, also if it has ended by now."""
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def hide_from_other_processes() -> None:
    """Nobody of the same user may read this process's memory or attach to it."""
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(DUMPABLE)")


def drop_capability_bounds() -> None:
    """Empty the bounding and the ambient set, as far as this process may (an ordinary user has nothing to drop)."""
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


_CAPABILITY_HEADER = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
_NO_CAPABILITIES = ctypes.create_string_buffer(24)


def drop_capabilities() -> None:
    _check(_LIBC.capset(_CAPABILITY_HEADER, _NO_CAPABILITIES), "capset")


def no_new_privileges() -> None:
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)")


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


class SeccompFilter:
    """Made once, installed in every run."""

    def __init__(self, bpf: bytes):
        self._buffer = ctypes.create_string_buffer(bpf, len(bpf))
        self._program = _FilterProgram(len(bpf) // 8, ctypes.addressof(self._buffer))
        self._pointer = ctypes.byref(self._program)

    def install(self) -> None:
        """Filter all further system calls of this process. Needs `no_new_privileges` first."""
        _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._pointer, 0, 0), "seccomp")


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 if it has none."""
    return max(0, _LIBC.syscall(_NR_LANDLOCK_CREATE, None, 0, _LANDLOCK_CREATE_VERSION))


def restrict_files(read: list[str], read_and_write: list[str]) -> None:
    """Landlock: of all files only those under the given paths, and (where the kernel knows how) no TCP and neither
    signals nor abstract sockets to outside. Needs `no_new_privileges` first."""
    abi = landlock_abi()
    if abi == 0:
        raise OSError(errno.ENOSYS, "Landlock is not in this kernel or is switched off")
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes)
    ruleset = _check(_LIBC.syscall(_NR_LANDLOCK_CREATE, buffer, size, 0), "landlock_create_ruleset")
    try:
        for path in read:
            _allow(ruleset, path, _READ & handled)
        for path in read_and_write:
            _allow(ruleset, path, _READ_AND_WRITE & handled)
        _check(_LIBC.syscall(_NR_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        _check(_LIBC.syscall(_NR_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


def address_space_bytes() -> int:
    """Size of this process's address space, found by trial: inside the sandbox there is no /proc to read it from."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 46
    page = resource.getpagesize()
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    _LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    failed = ctypes.c_void_p(-1).value
    private_and_anonymous = 0x22
    if hard != resource.RLIM_INFINITY:
        high = hard
    while high - low > (1 << 20):
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        address = _LIBC.mmap(None, page, 0, private_and_anonymous, -1, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if address == failed:
            low = middle
        else:
            _LIBC.munmap(address, page)
            high = middle
    return high
