"""Where questions come from: examples, sources and generators, templates, filters, splits and the sampler. No torch."""

from data.example import Example, Message
from data.filters import by_pass_rate, by_prompt_tokens, by_repetition
from data.gold import check_golds
from data.pairs import make_pairs
from data.sampler import Sampler, shard
from data.sources import DATA_SOURCES, DataSource, load_examples, resolve_path
from data.split import check_disjoint, is_in_part, part
from data.steps import StepLabel
from data.template import TemplateOptions, encode, encode_demonstration, render

__all__ = [
    "DATA_SOURCES",
    "DataSource",
    "Example",
    "Message",
    "Sampler",
    "StepLabel",
    "TemplateOptions",
    "by_pass_rate",
    "by_prompt_tokens",
    "by_repetition",
    "check_disjoint",
    "check_golds",
    "encode",
    "encode_demonstration",
    "is_in_part",
    "load_examples",
    "make_pairs",
    "part",
    "render",
    "resolve_path",
    "shard",
]
