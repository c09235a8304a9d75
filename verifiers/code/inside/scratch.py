"""The folder of a run where there is no private tmpfs: measured while the run lasts, removed after it.

What is in it is hostile: deep trees, many files, odd names.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress


def exceeds(folder: str, max_bytes: int, max_files: int) -> bool:
    """Whether the folder holds more, while the program goes on changing it. Looks at no more than `max_files` entries;
    a folder deeper than a path may be long is too much."""
    files, size, pending = 0, 0, [folder]
    while pending:
        try:
            entries = _entries(pending.pop())
        except OSError:  # it has become something else
            continue
        if entries is None:
            return True
        for entry in entries:
            files += 1
            with suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
            if files > max_files or size > max_bytes:
                return True
    return False


def _entries(folder: str) -> list[os.DirEntry[str]] | None:
    """What is in the folder, whatever its permissions; None if its path is longer than a path may be."""
    try:
        os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def remove(folder: str) -> None:
    """Remove the folder and everything in it. Folders in folders are brought up level by level, so that no path gets
    longer than a path may be."""
    numbers = itertools.count()
    while os.path.lexists(folder):
        entries = _entries(folder) or []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _empty(entry.path, folder, numbers)
            else:
                os.unlink(entry.path)
        if not entries:
            os.rmdir(folder)


def _empty(inner: str, folder: str, numbers: Iterator[int]) -> None:
    """Remove a folder after moving the folders in it to `folder`."""
    for child in _entries(inner) or []:
        if child.is_dir(follow_symlinks=False):
            os.chmod(child.path, 0o700)  # else an ordinary user may not move it
            os.rename(child.path, os.path.join(folder, f".up-{next(numbers)}-{os.urandom(8).hex()}"))
        else:
            os.unlink(child.path)
    os.rmdir(inner)
