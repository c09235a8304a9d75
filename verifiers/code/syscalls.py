"""The system calls a program may make, as a table from which `bpf` makes the filters.

An allow-list: what is not here fails with EPERM, so that a call which a future kernel adds is closed from the start.
Left out on purpose, besides the obvious (network, processes, mounts, tracing, keys, bpf, io_uring, other processes'
memory): every call that reaches a file by path or descriptor in a way Landlock does not check (chmod, chown, utimes,
extended attributes, truncate, flock, mknod, link), `kill` and its kin, and `sendmsg`, which can name a receiver.

Numbers: x86_64 from arch/x86/entry/syscalls/syscall_64.tbl, aarch64 from include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

from dataclasses import dataclass

EPERM, EAGAIN, ENOSYS = 1, 11, 38

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the architecture does not have it.
ALWAYS: dict[str, tuple[int | None, int | None]] = {
    # files: Landlock and the mount namespace decide which
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "ftruncate": (77, 46),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "getdents64": (217, 61),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "umask": (95, 166), "statfs": (137, 43),
    "fstatfs": (138, 44), "close_range": (436, 436), "fsync": (74, 82), "fdatasync": (75, 83),
    # descriptors
    "pipe": (22, None), "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "recvfrom": (45, 207),  # asyncio's own socket pair
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233),
    # time
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103),
    # its own signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pause": (34, None),
    "restart_syscall": (219, 128),
    # threads and itself
    "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "rseq": (334, 293), "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94),
    "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158),
    "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "wait4": (61, 260), "waitid": (247, 95),
    "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "setrlimit": (160, 164),
    "getcpu": (309, 168), "getrandom": (318, 278),
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """Argument number `argument`, masked: its low 32 bits must be among `values` (and, if `whole`, its high ones 0)."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    whole: bool = False


@dataclass(frozen=True)
class Conditional:
    """Allowed if every check holds, else `error`."""

    numbers: tuple[int | None, int | None]
    checks: tuple[Check, ...]
    error: int = EPERM


# The flags of glibc's and musl's pthread_create; all others of clone are namespaces, processes or tracing.
_THREAD = 0x00010000 | 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00040000
_THREAD_OPTIONAL = 0x00080000 | 0x00100000 | 0x00200000 | 0x00400000 | 0x01000000  # TLS, set and clear tid, detached
_SOCK_FLAGS = 0x00080800  # CLOEXEC, NONBLOCK
_O_TRUNC, _O_ACCMODE = 0o1000, 3
_FCNTL = (0, 1, 2, 3, 5, 6, 7, 36, 37, 38, 1030, 1032)  # dup, flags, record locks, pipe size; not: owner and signal
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL = (15, 16)  # the thread's name
# Landlock before version 3 lets a file that may only be read be emptied by O_TRUNC: reading must not ask for it.
_OPEN_FLAGS = (1, 2, _O_TRUNC | 1, _O_TRUNC | 2, 0)

CONDITIONAL: dict[str, Conditional] = {
    "open": Conditional((2, None), (Check(1, _OPEN_FLAGS, _O_TRUNC | _O_ACCMODE),)),
    "openat": Conditional((257, 56), (Check(2, _OPEN_FLAGS, _O_TRUNC | _O_ACCMODE),)),
    "clone": Conditional((56, 220), (Check(0, (_THREAD,), ~_THREAD_OPTIONAL & 0xFFFFFFFF),), EAGAIN),
    "socketpair": Conditional((53, 199), (Check(0, (1,)), Check(1, (1,), ~_SOCK_FLAGS & 0xFFFFFFFF))),
    "sendto": Conditional((44, 206), (Check(4, (0,), whole=True),)),
    "fcntl": Conditional((72, 25), (Check(1, _FCNTL),)),
    "ioctl": Conditional((16, 29), (Check(1, _IOCTL),)),
    "prctl": Conditional((157, 167), (Check(0, _PRCTL),)),
    "prlimit64": Conditional((302, 261), (Check(0, (0,)),)),  # of itself only
    # So that the C library falls back to clone, whose flags a filter can read.
    "clone3": Conditional((435, 435), (), ENOSYS),
}
