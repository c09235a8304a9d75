r"""Wrong answers that are near the right ones, by what they show.

Labelled by the conventions of `verifiers.math.verifier` before anything was run. A line of the table is
``gold <- answer ;; another answer``.
"""

from __future__ import annotations

import pytest

from tests.verifiers.math_pairs import judge, pairs

WRONG = {
    "numbers in all their spellings": r"""
        1011_2 <- 1011_3 ;; 1011
        204_5 <- 204_6
        100 <- 100_2
        1:2:3:... <- 1:4:9:...
        1000000 <- 1000001
        123456789 <- 123456788
        10000 <- 9999
        -1 3/4 <- -1/4
        12345678901234567890 <- 12345678901234567891
        3\frac12 <- 1.5
        2:3 <- 3:2
        5 <- -5 ;; |{-5}| + 1
        2:1 <- 1:2
        1,000,000 <- 100,000
        1,234 <- 1.234
        1.2\times10^{-3} <- 1.2\times10^{3}
        0.\overline{27} <- 0.27
        2\frac12 <- \frac{2}{2}
        3:4 <- 4:3
        -\frac52 <- \frac52
        12345678912 <- 12345678913
        15 <- 15:00 ;; 1,5
        1,5 <- 15
        3,4,5 <- 345
        5.000 <- 5000
        1 : 4 <- 4 : 1
    """,
    "a percentage is its value": r"""
        0.3\% <- 0.3
        25\% <- 25
        5 <- 5\%
        0.5 <- 0.5\%
        20\% <- 20 ;; 0.02
        20 <- 20\%
        33\frac{1}{3}\% <- 33\%
        5\% <- 0.5
        150\% <- 15
        \frac14 <- 2.5\%
        12.5\% <- 12.5 ;; \frac{1}{9}
        0.25\% <- 0.25
    """,
    "decimals and rounding": r"""
        0.0000001 <- 0.0000002
        \pi <- 355/113 ;; 3.14 ;; 3.1416
        \frac13 <- 0.33 ;; 0.3333
        0.5 <- 0.52
        5 <- 5.0001
        \frac{1}{7} <- 0.142857 ;; 0.14
        12.0 <- 12.4
        8.0 <- 8.3
        \frac23 <- 0.67
        \sqrt2 <- 1.41
        \sqrt{2} <- 1.4142
        e <- 2.72
        0.67 <- 0.66 ;; \frac{5}{7}
        12.57 <- 12.5 ;; 13
        3.46 <- 3.4
        100 <- 99.9
        1000 <- 1001
        4\pi <- 12.57
        0.05 <- 0.1
        10.5 <- 10.51
        7 <- 7.0001
        \frac\pi4 <- 0.785
        2 <- \sqrt3
        1.8 <- \sqrt3
        173 <- 100\sqrt3
        2.5 <- 2.54
        x>\sqrt2 <- x>1.414
    """,
    "sets of real numbers, as intervals, inequalities or set builders": r"""
        5 <- |x|=5
        [0,1) <- [0,1]
        (-\infty,3] <- (-\infty,3)
        (1,2) <- [1,2]
        |x| <- x
        \infty <- -\infty
        0 <- \infty-\infty
        1 <- \frac{\infty}{\infty}
        x>2 <- x\ge 2 ;; y>2
        (2,\infty) <- x>-2
        a \leqslant -2 \text{ or } a = 1 <- (-\infty,-2)\cup\{1\}
        -5\leqslant a\leqslant -\frac{5}{2} <- -5<a<-2.5
        (-1,\infty) <- x\ge -1 ;; x<-1
        [1,3] <- 1<x<3 ;; [1,3) ;; \{1,3\} ;; \{1,2,3\}
        (-\infty,2)\cup(2,\infty) <- \mathbb{R} ;; x=2
        (-2,2) <- |x|\le 2 ;; |x|>2
        (-\infty,-1)\cup(3,\infty) <- -1<x<3 ;; x<-1 \text{ and } x>3 ;; (-\infty,-1)\cap(3,\infty) ;; (3,\infty)
        x>3 <- 3 ;; x=3 ;; x>3.1
        k>\frac14 <- k\ge\frac14
        a\ge 2 <- b\ge 2
        [0,\infty) <- (0,\infty)
        (1,2] <- (2,1]
        (a,b) <- (b,a)
        [-1,0)\cup(0,1] <- [-1,1] \text{ except } 0
    """,
    "Unicode mathematics": r"""
        \frac34 <- ¼
        2\pi <- π²
        x\ge 3 <- x ≤ 3
        x^3 <- x²
        -7 <- 7
        \sqrt{3} <- ∛3
    """,
    "complex numbers": r"""
        3 <- 3i
        3+4i <- 3-4i ;; 4+3i ;; 7i
        -i <- i
        2i,-2i <- 2i
        5i <- 5
        1+2i <- (1,2)
    """,
    "multiple choice": r"""
        A <- A,B,C,D
        C <- (A) (B) (C) (D) ;; D ;; C or D ;; A, B, C, D ;; \text{not C} ;; \text{C and D}
        \textbf{(A)}\ 5 <- (B)
        A,C <- A ;; A,B,C
        B <- 8 ;; \text{(A) or (B)}
    """,
    "units, currencies, angles, times": r"""
        4\text{ days} <- 4 days and 3 hours
        3 <- 3 cm and 4 cm
        4:30\text{ p.m.} <- 4:30 a.m.
        5 cm <- 5 kg
        5 m <- 5 cm
        (45^{\circ}, 60^{\circ}) <- (60^\circ,45^\circ)
        24\text{ cm}^2 <- 24\text{ cm}^3
        24 \text{ cm} <- 24 \text{ m}
        3\text{ hours} <- 3\text{ minutes}
        \$18 <- \$81
        2.5 \text{ m} <- 25\text{ cm}
        9:30 <- 9:45
        5\text{ km} <- 5\text{ kg}
        60 <- 60^{12}
        45 <- \frac{\pi}{4}
        \frac{\pi}{4} <- 45
    """,
    "named values and equations": r"""
        x^2+y^2=25 <- 25
        3x+4y+14=0 <- 3x-y+13=0
        x=5 <- y=5
        2x+1 <- 2x+1=0
        x=1,y=2 <- x=2,y=1
        y=x^2 <- y=x^3
        f(z)=z <- f(x)=2x
        x_1=-2, x_2=3 <- -2,-3
        k=3 <- k=4
        (2,-1) <- x=-1,y=2 ;; (-1,2)
        (1,2,3) <- (1,2)
        x=3\text{ or }x=-3 <- x=3
        x=3 <- y=3
        y=3x-2 <- y=3x+2 ;; x=3y-2
        3,5 <- 3,5,7 ;; 35 ;; (3,5),(5,3)
        7 <- n=7,8
        f(x)=2x+1 <- f(x)=2x-1
        12 <- 12x
        y=2x <- 2x-y
        6 \text{ or } 8 <- 6
    """,
    "values that must be computed": r"""
        16 <- 4^3
        3 <- \log_2 9
        -4 <- (-2)^2
        6 <- \text{gcd}(2,3)
        120 <- 5
        2 <- \sqrt{8}
        \frac{1}{2} <- \sin 60^\circ
        45 <- \int_0^3 5x^2 dx + 1
    """,
    "expressions": r"""
        1/2^{99} <- 1/2^{98}
        1/2004! <- 1/2006!
        \frac{2^{2005}+1}{3\cdot2^{2006}} <- \frac{1}{3\cdot2^{2006}}
        4 <- 4\sqrt(2)
        1-1/\mathrm{e} <- 1+1/\mathrm{e}
        2^{100} <- 2^{100}+1
        2^{2005}+1 <- 2^{2005}
        x^{10} <- x^{1}0
        x <- y
        x+1 <- x+2
        \sqrt{x^2+y^2} <- x+y
        3 <- \pm 3
        \pm 3 <- 3
        \frac{a}{b} <- \frac{b}{a}
        \sin x <- \cos x
        a+b <- a-b ;; ab
        0 <- 10^{-9} ;; e^{-100}
        10^{-9} <- 0
        e^{-1000} <- 0
        f(x) <- f(x+1)
        \log_2 3 <- \log_3 2
        100 <- 10^{2.0001}
        x^2 <- 2x
        n <- k
        f(2) < f(1) < f(4) <- f(1)<f(2)<f(4)
        x^2-1 <- x^2+1 ;; (x-1)^2
        \frac{x+1}{x-1} <- \frac{x-1}{x+1}
        2^{2n} <- 2^{n+2}
        \sin 2x <- 2\sin x
        \frac{x^3}{3}+C <- \frac{x^3}{3}
        \frac{x^3}{3} <- \frac{x^2}{3}
        e^{2x} <- e^{x^2}
        (x-3)^2+(y+1)^2=4 <- (x-3)^2+(y+1)^2=2
        2x+3y-6=0 <- 2x+3y+6=0
        \ln\frac{x}{y} <- \frac{\ln x}{\ln y}
        \frac{1}{x} <- \frac{1}{x^2}
        2x <- 2
        x^2+3x+2 <- (x+1)(x+2)=0
        (x+1)(x+2) <- (x+1),(x+2)
        \sin^2 x <- \sin x^2
        \sin^{-1}x <- \frac{1}{\sin x}
    """,
    "matrices and vectors": r"""
        \begin{pmatrix}1&2\\3&4\end{pmatrix} <- \begin{pmatrix}1&3\\2&4\end{pmatrix} ;; (1,2,3,4)
        \begin{pmatrix}1&0\\0&1\end{pmatrix} <- \begin{pmatrix}0&1\\1&0\end{pmatrix} ;; 1
        \begin{pmatrix} 4 \\ -7 \end{pmatrix} <- (-7,4)
    """,
    "sets, tuples and lists": r"""
        1,2,...,n <- 1,3,5,...,2n-1
        1,-2 <- 1 ;; 1,-2,3
        (1,2) <- (2,1) ;; \{1,2\}
        2,3 <- 23 ;; 2.3
        10,000 <- 10
        \emptyset <- \{0\} ;; 0
        \{1,2\} <- (1,2) ;; [1,2]
        1,2,3 <- (1,3,2)
        (2,3) <- 2<x\le3
        40 \ \text{chocolate candies}, \ 60 \ \text{lollipop candies} <- 60, 40, 1
        \{-3,2\} <- \{3,-2\} ;; \{-3\}
        (1,2),(2,1) <- (1,2)
        (1,2),(3,4) <- (1,4),(3,2)
        0 <- \emptyset
        (6,8) <- [6,8] ;; \{6,8\} ;; 6+8i ;; \frac{6}{8}
    """,
    "words": r"""
        \text{undefined} <- 0 ;; \infty
        \text{Yes} <- \text{Not Yes}
        \text{even} <- \text{odd}
        \text{no solution} <- \text{one solution} ;; 0
        \text{yes} <- \text{no}
        \text{odd} <- \text{neither odd nor even}
        \text{infinitely many} <- \text{finitely many}
    """,
    "hedged, enumerated, contradictory, forged": r"""
        8 <- 7=8
        7 <- 7\approx 100 ;; \text{between 6 and 8}
        3 <- len("abc")
        12 <- 12 or 13 ;; \text{The answer is 12 or 13} ;; \pm\sqrt{144} ;; 12! ;; \overline{12}
        12 <- 12 \text{ (mod 13)}
        5 <- \text{not } 5 ;; \text{about } 5 ;; 5 \text{ or } 6 ;; 2+2=5 ;; x=5=6 ;; 1,2,3,4,5,6,7,8,9
        5 <- \text{any number} ;; x ;; 5 = 6 ;; \text{the gold answer} ;; \{5,6\} ;; [4,6] ;; 5\pm 1
        5 <- \text{not sure}, 5 ;; 5? ;; \text{5 or something} ;; max(5, 4)+0.1 ;; \frac{5}{0} ;; ? ;; 5/5 ;; 5 \neq 6
        5 <- 5 < 6 ;; len("aaaaa") ;; \text{if } x>0 \text{ then } 5 \text{ else } 6 ;; 5, 5.1 ;; \boxed{5}\boxed{6}
        5 <- \text{reward}=1 ;; y ;; \text{True}
        6 <- 6x ;; x+6-y
        x^2 <- f(x) ;; x^n
        15 <- 15\text{ or more} ;; \text{at most }15 ;; \text{about }15 ;; 15\cdot ;; 15\%\text{ of }100 ;; 15\ldots
    """,
}


@pytest.mark.parametrize(("gold", "answer"), pairs(WRONG))
def test_a_wrong_answer_is_wrong(gold: str, answer: str) -> None:
    verdict = judge(gold, answer)
    assert verdict.score == 0.0, verdict.evidence
