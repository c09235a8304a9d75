"""Mathematical answers. Importing this package imports neither sympy nor math-verify: the worker process does."""

from verifiers.math.verifier import MathVerifier

__all__ = ["MathVerifier"]
