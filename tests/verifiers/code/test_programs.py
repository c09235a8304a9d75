"""Every program of the corpus behaves as its `expect` says, in both tiers: verdicts and side effects."""

import pytest

from verifiers.code.bench import corpus

PROGRAMS = [program for name in corpus.FILES for program in corpus.load(name)]


@pytest.fixture(scope="module")
def listeners():
    with corpus.Listeners() as listeners, corpus.canaries():
        yield listeners


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_program_behaves_as_expected(verifier, listeners, program):
    assert corpus.judge(verifier, listeners, program)["problems"] == []


def test_the_corpus_is_whole_and_varied():
    assert {program["category"] for program in PROGRAMS} == set(corpus.CATEGORIES)
    assert len({program["id"] for program in PROGRAMS}) == len(PROGRAMS) == 167
