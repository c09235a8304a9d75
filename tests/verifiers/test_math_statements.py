"""Final statements of responses without a box: what counts as an answer, and what must not."""

import pytest

from verifiers.math import MathVerifier
from verifiers.verdict import VerifyRequest

VERIFIER = MathVerifier(MathVerifier.Options())
RIGHT = [
    ("42", "The answer is 42."),
    ("42", "The answer is: 42"),
    ("42", "**Final Answer:** 42"),
    ("42", "Final answer: $42$"),
    ("42", "Final Answer\n\n$$42$$"),
    ("42", "### Final Answer\n42"),
    ("42", "Step 1: ...\n\nAnswer: 42"),
    ("42", "So the final answer is \\(42\\)."),
    ("42", "Hence the value is 42."),
    ("42", "Therefore, there are 42 apples left."),
    ("42", "After computing, we get 42."),
    ("42", "x = 42"),
    ("42", "$x=42$"),
    ("42", "42"),
    ("42", "42."),
    ("42", " 42 apples"),
    ("42", "The answer is 41. No wait, the answer is 42."),
    ("\\frac{3}{7}", "The probability is $\\frac{3}{7}$."),
    ("\\frac{3}{7}", "Thus the probability is 3/7."),
    ("12", "The area of the circle with radius 3 is 12."),
    ("B", "The correct answer is (B)."),
    ("B", "Answer: B"),
    ("B", "The answer is B."),
    ("B", "So the correct option is (B) 42."),
    ("(3,4)", "Therefore the point is $(3,4)$."),
    ("x=2,3", "The solutions are $x = 2$ and $x = 3$."),
    ("2,3", "The solutions are 2 and 3."),
    ("2,3", "Answer: 2, 3"),
    ("15", "#### 15"),
    ("15", "blah\n#### 15\n"),
    ("1500", "#### 1,500"),
    ("15", "#### $15"),
    ("15", "#### 15 dollars"),
    ("72", "A: 72"),
    ("0.5", "The probability is 50%."),
    ("-5", "The answer is -5"),
    ("3", "Final Answer: The final answer is $3$. I hope it is correct."),
    ("3", "<answer>3</answer>"),
    ("3", "<think>hm</think><answer>3</answer>"),
    ("3", "<answer>\\boxed{3}</answer>"),
    ("3", "Answer:\n3"),
    ("3", "**Answer**: 3"),
    ("3", "Answer = 3"),
    ("3", "Our answer is therefore $3$."),
    ("3", "The final answer is therefore 3"),
    ("7", "The answer is $\\boxed{7}$, since 3+4=7."),
    ("18", "Therefore, x = 18."),
    ("18", "**18**"),
    ("18", "Thus, 18."),
    ("1,2", "x = $\\boxed{1}$ or $x = \\boxed{2}$"),
    ("2,3", "$a=\\boxed{2}$, $b=\\boxed{3}$"),
    ("(3,4)", "$x = \\boxed{3}$, $y = \\boxed{4}$"),
]
WRONG = [
    ("18", "Let me think step by step. 18 is even, so we need"),
    ("18", "The answer is negative 18."),
    ("18", "The answer is greater than 18"),
    ("18", "The answer is at least 18."),
    ("18", "Is it 18?"),
    ("18", "18?"),
    ("18", "I think it is 18"),
    ("18", "We need to find 18"),
    ("18", "Let x = 18"),
    ("18", "Suppose the answer were 18."),
    ("18", "If the answer is 18 then we are done. But it is not."),
    ("18", "x = 18, but that fails"),
    ("18", "The answer is not \\boxed{18}."),
    ("18", "\\boxed{18} is wrong."),
    ("18", "\\boxed{18}? No."),
    ("18", "First compute 9*2 = 18"),
    ("42", "We had 42 at first. Then he lost 2. So he has 40 now."),
    ("42", "The answer is 42 or 43."),
    ("42", "The answer is not 42."),
    ("42", "The answer might be 42"),
    ("42", "The answer is 42. No wait, the answer is 41."),
    ("42", "I think 42"),
    ("42", "Let me think about 42 first. We compute 6 times 7 ="),
    ("42", "The answer is"),
    ("42", "The answer is \\boxed{"),
    ("42", ""),
    ("42", "   "),
    ("42", "None of these. 42 is too large."),
    ("B", "The answer is A or B"),
    ("15", "#### 16"),
    ("-5", "The answer is 5"),
    ("3", "<think>the answer is 3</think> I do not know."),
]


@pytest.mark.parametrize(("gold", "response"), RIGHT)
def test_a_final_statement_is_an_answer(gold, response):
    verdict = VERIFIER.verify(VerifyRequest(response, gold))
    assert verdict.score == 1.0, verdict.evidence


@pytest.mark.parametrize(("gold", "response"), WRONG)
def test_what_is_hedged_denied_retracted_or_unfinished_is_not_right(gold, response):
    verdict = VERIFIER.verify(VerifyRequest(response, gold))
    assert verdict.score == 0.0, verdict.evidence
