"""Which part of a response is the program."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.code.extract import extract_program


@pytest.mark.parametrize(
    ("response", "program", "how"),
    [
        ("text ```python\nprint(1)\n``` end", "print(1)\n", "python block 1 of 1"),
        ("```python\na\n```\n```python\nb\n```", "b\n", "python block 2 of 2"),
        ("```py\na\n```\n```\nb\n```", "a\n", "python block 1 of 2"),
        ("```\na\n```\nand\n```text\nb\n```", "a\n", "untagged block 1 of 2"),
        ("```python\na", "a", "python block 1 of 1, never closed"),
        ("```Python\na\n```", "a\n", "python block 1 of 1"),
        ("1. so\n   ```python\n   a\n   b\n   ```", "a\nb\n", "python block 1 of 1"),
        ("```python\ns = '```'\n```", "s = '```'\n", "python block 1 of 1"),
        ("<think>```python\nno\n```</think>```python\nyes\n```", "yes\n", "python block 1 of 1"),
        ("```cpp\nint x;\n```", None, "no program: no block is Python (cpp)"),
        ("<think>hm", None, "no program: the response ended while thinking"),
        ("print(1)", "print(1)", "the whole text"),
        (" \n", None, "no program: the response is empty"),
    ],
)
def test_program_of_a_response(response, program, how):
    found = extract_program(response)
    assert (found.program, found.how) == (program, how)


def test_the_source_can_be_insisted_on():
    assert extract_program("print(1)", "fenced").program is None
    assert extract_program("```python\na\n```", "text").program == "```python\na\n```"


@given(st.text(alphabet="`pyth on\na{}"))
def test_any_text_has_a_program_or_a_reason(response):
    found = extract_program(response)
    assert found.how.startswith("no program") == (found.program is None)
