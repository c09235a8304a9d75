"""The seccomp filters: the shipped bytes are what the table says, run through an interpreter of BPF."""

import struct

import pytest

from verifiers.code.bpf import build_filter, filter_path
from verifiers.code.syscalls import ALWAYS, AUDIT_ARCH, CONDITIONAL

ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050001, 0x80000000
MACHINES = sorted(AUDIT_ARCH)


def run_filter(bpf, *, machine, number, arguments=(), arch=None):
    """What the kernel would do with one call (the subset of classic BPF that the filters use)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *padded)
    position = accumulator = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", bpf, 8 * position)
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_shipped_filter_is_the_generated_one(machine):
    assert filter_path(machine).read_bytes() == build_filter(machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_only_calls_of_the_table_are_allowed(machine):
    column, bpf = list(AUDIT_ARCH).index(machine), filter_path(machine).read_bytes()
    always = {numbers[column] for numbers in ALWAYS.values()}
    conditional = {rule.numbers[column] for rule in CONDITIONAL.values()}
    for number in range(1024):
        if number not in conditional:
            assert run_filter(bpf, machine=machine, number=number) == (ALLOW if number in always else EPERM), number
    assert not always & conditional - {None}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine):
    bpf = filter_path(machine).read_bytes()
    other = AUDIT_ARCH[next(m for m in MACHINES if m != machine)]
    assert run_filter(bpf, machine=machine, number=0, arch=other) == KILL
    assert run_filter(bpf, machine=machine, number=0, arch=0x40000003) == KILL  # i386
    assert run_filter(bpf, machine=machine, number=0x40000000) == KILL  # x32


THREAD = 0x3D0F00  # what glibc's pthread_create passes


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", [THREAD], ALLOW),
        ("clone", [17], 0x0005000B),  # fork: EAGAIN
        ("clone", [THREAD | 0x10000000], 0x0005000B),  # a user namespace
        ("clone", [THREAD & ~0x00010000], 0x0005000B),
        ("clone", [THREAD | 0x00002000], 0x0005000B),  # tracing
        ("clone3", [], 0x00050026),  # ENOSYS, so that the C library uses clone
        ("openat", [0, 0, 0o100], ALLOW),  # O_CREAT | O_RDONLY
        ("openat", [0, 0, 0o1000], EPERM),  # O_TRUNC | O_RDONLY
        ("openat", [0, 0, 0o1001], ALLOW),
        ("openat", [0, 0, 3], EPERM),
        ("socketpair", [1, 1 | 0x80000], ALLOW),
        ("socketpair", [1, 2], EPERM),  # datagram
        ("socketpair", [2, 1], EPERM),
        ("sendto", [3, 0, 0, 0, 0, 0], ALLOW),
        ("sendto", [3, 0, 0, 0, 0x1000, 16], EPERM),
        ("sendto", [3, 0, 0, 0, 1 << 32, 16], EPERM),
        ("fcntl", [0, 3], ALLOW),
        ("fcntl", [0, 8], EPERM),  # F_SETOWN: signals to others
        ("fcntl", [0, 10], EPERM),  # F_SETSIG
        ("ioctl", [0, 0x5401], ALLOW),
        ("ioctl", [0, 0x5412], EPERM),  # TIOCSTI: type into the terminal
        ("ioctl", [0, (1 << 32) | 0x5412], EPERM),
        ("prctl", [15], ALLOW),
        ("prctl", [1], EPERM),  # PDEATHSIG
        ("prctl", [22], EPERM),
        ("prlimit64", [0, 3], ALLOW),
        ("prlimit64", [1, 3], EPERM),
    ],
)
def test_conditions_on_arguments(machine, name, arguments, expected):
    number = CONDITIONAL[name].numbers[list(AUDIT_ARCH).index(machine)]
    bpf = filter_path(machine).read_bytes()
    assert run_filter(bpf, machine=machine, number=number, arguments=arguments) == expected


def test_nothing_that_reaches_other_processes_or_the_network_is_in_the_table():
    names = set(ALWAYS) | set(CONDITIONAL)
    for name in ("kill", "tkill", "tgkill", "ptrace", "process_vm_readv", "pidfd_open", "pidfd_getfd", "socket",
                 "connect", "bind", "sendmsg", "execve", "execveat", "fork", "vfork", "unshare", "setns", "mount",
                 "bpf", "keyctl", "io_uring_setup", "userfaultfd", "memfd_create", "chmod", "fchmod", "truncate",
                 "utimensat", "link", "symlink", "mknod", "setxattr", "sendfile", "inotify_init1",
                 "open_by_handle_at"):  # fmt: skip
        assert name not in names
