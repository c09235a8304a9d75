"""Seccomp filters as classic BPF, generated from `syscalls` for both architectures.

`write_filters` writes `filters/*.bpf`, which are shipped as bytes; a test makes them again and compares.
Format: struct sock_filter of linux/filter.h, 8 bytes an instruction, over struct seccomp_data of linux/seccomp.h.
"""

from __future__ import annotations

import struct
from pathlib import Path

from verifiers.code.syscalls import ALWAYS, AUDIT_ARCH, CONDITIONAL, EPERM, Check, Conditional

FILTERS = Path(__file__).parent / "filters"
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000


def filter_path(machine: str) -> Path:
    return FILTERS / f"{machine}.bpf"


def build_filter(machine: str) -> bytes:
    """The filter for `machine` ("x86_64" or "aarch64")."""
    column = list(AUDIT_ARCH).index(machine)
    program = [
        *_load(_ARCH_OFFSET),
        _jump(_JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _return(_KILL_PROCESS),
        *_load(_NUMBER_OFFSET),
        # The x32 calls of an x86_64 kernel have numbers of their own from here on.
        _jump(_JUMP_AT_LEAST, _X32_BIT, 0, 1),
        _return(_KILL_PROCESS),
    ]
    for numbers in ALWAYS.values():
        if (number := numbers[column]) is not None:
            program += [_jump(_JUMP_EQUAL, number, 0, 1), _return(_ALLOW)]
    for conditional in CONDITIONAL.values():
        if (number := conditional.numbers[column]) is not None:
            block = _conditional(conditional)
            program += [_jump(_JUMP_EQUAL, number, 0, len(block)), *block]
    program.append(_return(_ERRNO | EPERM))
    return b"".join(program)


def _conditional(conditional: Conditional) -> list[bytes]:
    refuse = _return(_ERRNO | conditional.error)
    if not conditional.checks:
        return [refuse]
    block: list[bytes] = []
    for check in conditional.checks:
        block += _check(check, refuse)
    return [*block, _return(_ALLOW)]


def _check(check: Check, refuse: bytes) -> list[bytes]:
    offset = _ARGUMENTS_OFFSET + 8 * check.argument  # little endian: the low half comes first
    block = [*_load(offset), _instruction(_AND, check.mask)]
    for position, value in enumerate(check.values):
        block.append(_jump(_JUMP_EQUAL, value, len(check.values) - position, 0))
    block.append(refuse)
    if check.whole:
        block += [*_load(offset + 4), _jump(_JUMP_EQUAL, 0, 1, 0), refuse]
    return block


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _load(offset: int) -> list[bytes]:
    return [_instruction(_LOAD, offset)]


def _jump(code: int, operand: int, if_true: int, if_false: int) -> bytes:
    return _instruction(code, operand, if_true, if_false)


def _return(value: int) -> bytes:
    return _instruction(_RETURN, value)


def write_filters() -> None:
    for machine in AUDIT_ARCH:
        filter_path(machine).write_bytes(build_filter(machine))
