"""Imports `threading` without its fork hook.

The hook forgets the other threads, of which a zygote has none, and renews locks that nobody holds; it costs a tenth of
a run's time.
"""

import os

_register_at_fork = os.register_at_fork
os.register_at_fork = lambda **_: None
try:
    import threading  # noqa: F401
finally:
    os.register_at_fork = _register_at_fork
