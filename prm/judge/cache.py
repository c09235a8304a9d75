"""Replies that were paid for once: one SQLite file, shared by processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple

from verifiers.errors import RunError

_BUSY_TIMEOUT_S = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS replies "
    "(key TEXT PRIMARY KEY, text TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"
)


class CachedReply(NamedTuple):
    text: str
    tokens_in: int
    tokens_out: int


class ReplyCache:
    """Texts by key; the first that was stored stays. Thread safe. The file must be on a local disk: SQLite's log is
    shared memory.

    Raises `RunError` if the file cannot be used, at construction and later.
    """

    def __init__(self, path: str):
        self._path = os.path.expanduser(path)
        self._lock = threading.Lock()
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, _BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            # a log file instead of a rollback journal: no wait for the disk at each reply, readers never block
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE)
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error

    def get(self, key: str) -> CachedReply | None:
        try:
            with self._lock:
                row = self._db.execute(
                    "SELECT text, tokens_in, tokens_out FROM replies WHERE key = ?", (key,)
                ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else CachedReply(*row)

    def put(self, key: str, reply: CachedReply) -> None:
        try:
            with self._lock:
                self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (key, *reply))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _unusable(self, error: Exception) -> RunError:
        return RunError(
            f"The cache of judge replies cannot be used: {error}.",
            where=self._path,
            why="without it a resumed run would pay for every judgement again",
            fix="name a file that can be written on a local disk; a damaged one can be deleted",
        )
