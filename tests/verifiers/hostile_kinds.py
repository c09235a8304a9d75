"""Verifiers that do what the response tells them to, good or bad."""

import ctypes
import os
import signal
import time
import zlib

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.verdict import Status, Verdict


class InProcess:
    isolated = False

    class Options(BaseOptions):
        greeting: str = "done"

    def __init__(self, options):
        self.options = options

    def verify(self, request):
        command, _, argument = request.response.partition(" ")
        return getattr(self, command)(argument) or Verdict(1.0, Status.CORRECT, self.options.greeting, answer=argument)

    def gold_response(self, gold, meta):
        return self.verify_gold(gold)

    def verify_gold(self, gold):
        if gold == "hang":
            time.sleep(60)
        if gold is None:
            raise BadGold("no gold")
        return f"echo {gold}"

    def echo(self, text):
        return Verdict(0.5, Status.CORRECT, text)

    def graded(self, score):
        return Verdict(float(score), Status.CORRECT, parts={"half": float(score), "unknown": None})

    def sleep(self, seconds):
        time.sleep(float(seconds))

    def raises(self, text):
        raise LookupError(text)

    def memory_error(self, _):
        raise MemoryError

    def bad_gold(self, text):
        raise BadGold(text)

    def not_a_verdict(self, _):
        return True

    def prints(self, text):
        print(text * 1000, flush=True)  # noqa: T201 (what a careless library does)
        os.write(1, b"raw\n")


class Commanded(InProcess):
    isolated = True

    def spin(self, _):
        while True:
            pass

    def big_integer(self, _):
        return Verdict(1.0, Status.CORRECT, str((7**10**9) % 10))  # one C call that holds the interpreter lock

    def allocate(self, megabytes):
        return Verdict(1.0, Status.CORRECT, str(len(bytearray(int(megabytes) * 2**20))))

    def scolds(self, megabytes):
        os.write(2, b"x" * (int(megabytes) * 2**20) + b"the end")

    def scolded_bytes(self, _):
        return Verdict(1.0, Status.CORRECT, str(os.fstat(2).st_size))

    def exits(self, code):
        os._exit(int(code))

    def segfaults(self, _):
        ctypes.string_at(0)

    def is_killed(self, _):
        os.kill(os.getpid(), signal.SIGKILL)

    def pid(self, _):
        return Verdict(1.0, Status.CORRECT, str(os.getpid()))


class SlowToStart(Commanded):
    def __init__(self, options):
        super().__init__(options)
        time.sleep(0.8)


class CannotStart(Commanded):
    def __init__(self, options):
        raise ImportError("No module named 'a_missing_library'")


class Wrapping(InProcess):
    """Right if the response is wrapped in angle brackets; says how to wrap a text."""

    def verify(self, request):
        right = request.response.startswith("<") and request.response.endswith(">")
        return Verdict(float(right), Status.CORRECT if right else Status.WRONG, "looked for brackets")

    def wrap_gold_response(self, text):
        return f"<{text}>"


class IsolatedWrapping(Wrapping):
    isolated = True


class Explained(Commanded):
    def explain(self, request):
        if request.response == "hang":
            time.sleep(60)
        if request.response == "raises":
            raise LookupError("oh")
        return {"second": "z", "first": request.response}


class InProcessExplained(Explained):
    isolated = False


class PlantedFaults:
    """For training runs: what becomes of a response hangs on its text alone. One in eight each ends the worker, hangs
    and eats memory; of the others half are right."""

    isolated = True
    ENDINGS = ("verifier_fault", "timeout", "memory", "correct", "wrong", "correct", "wrong", "correct")

    class Options(BaseOptions):
        pass

    def __init__(self, options):
        pass

    @classmethod
    def ending(cls, response):
        return cls.ENDINGS[zlib.crc32(response.encode()) % 8]

    def verify(self, request):
        ending = "correct" if request.response == "the gold" else self.ending(request.response)
        if ending == "verifier_fault":
            os._exit(7) if len(request.response) % 2 else ctypes.string_at(0)
        if ending == "timeout":
            time.sleep(60)
        if ending == "memory":
            bytearray(10**12)
        return Verdict(float(ending == "correct"), Status(ending), "planted", parts={"half": 0.5})

    def gold_response(self, gold, meta):
        return "the gold"


class Jittery(InProcess):
    """Takes a different time each time it is asked; what it says does not depend on that."""

    isolated = True

    def verify(self, request):
        time.sleep(os.urandom(1)[0] / 10_000)
        return Verdict(float(len(request.response) % 2), Status.CORRECT, request.response, answer=request.example_id)
