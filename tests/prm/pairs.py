"""Trajectories that give stated answers, in groups that are the views of questions."""

from data.example import Example, Message
from data.pairs import ID_SUFFIX, PAIR
from tests.helpers import trajectory


def views(question="q", gold="3"):
    """The two views of a question."""
    original = Example(question, (Message("user", question),), gold, meta={PAIR: question})
    other = Example(
        question + ID_SUFFIX, (Message("user", f"{question}, in other words"),), gold, meta={PAIR: question}
    )
    return original, other


def responses(group, answers, lengths=None):
    """One trajectory an answer, None for a response without one."""
    lengths = lengths or [3] * len(answers)
    texts = ["no idea" if a is None else f"so \\boxed{{{a}}}" for a in answers]
    return [
        trajectory([5, 6], list(range(7, 7 + n)), group, s, text=text)
        for s, (text, n) in enumerate(zip(texts, lengths, strict=True))
    ]


def asked(trajectories, by_group):
    return [by_group[t.group] for t in trajectories]
