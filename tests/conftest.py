"""Settings for all tests."""

from hypothesis import settings

# how long one example takes says more of the machine than of the code; tests of limits measure them themselves
settings.register_profile("assay", deadline=None)
settings.load_profile("assay")
