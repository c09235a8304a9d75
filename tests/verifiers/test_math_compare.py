r"""Right answers in other spellings, by what they show.

Labelled by the conventions of `verifiers.math.verifier` before anything was run. A line of the table is
``gold <- answer ;; another answer``.
"""

from __future__ import annotations

import pytest

from tests.verifiers.math_pairs import judge, pairs

RIGHT = {
    "numbers in all their spellings": r"""
        42 <- ~42~ ;; 42.
        1234567 <- 1\,234\,567
        \frac{3}{4} <- 3/4 ;; \frac34
        2:3 <- 2/3 ;; \frac{2}{3}
        1200 <- 1,200
        1101_2 <- 13
        13 <- 1101_2
        10 <- 1010_2 ;; \frac{10}{1}
        FF_{16} <- 255
        10\frac{1}{2} <- 10.5
        -\frac12 <- \frac{-1}{2} ;; -0.5
        2 : 1 <- 2:1
        1,000,000 <- 1000000 ;; 10^6
        1.2\times10^{-3} <- 0.0012
        0.\overline{27} <- \frac{3}{11}
        -\frac{5}{2} <- -2.5 ;; -2\frac12
        2.0 <- 2
        007 <- 7
        +5 <- 5
        .5 <- \frac12
        \frac{-3}{-4} <- 0.75
        1011_2 <- 11
        2A_{16} <- 42
        3:4 <- 3/4
        \dfrac{9}{4} <- 2.25
        15 <- {15} ;; [15] ;; 15_{10} ;; \frac{30}{2}
        1 <- 0.\overline{9}
        12 <- \underline{12} ;; \text{twelve}
        5{,}000 <- 5000
        5\,000 <- 5000
        3.00 <- 3
        3 <- 3.00
        1:4 <- 0.25
    """,
    "a percentage is its value": r"""
        50\% <- 0.5
        12.5\% <- 1/8 ;; 12.50\%
        25\% <- 25 \%
        20\% <- 20 percent ;; \frac{1}{5}
        113.4\% <- 1.134
        32.8\% <- \frac{41}{125}
        0.2 <- 20\%
        37.5\% <- \frac{3}{8}
        150\% <- 1.5
        12\% <- 12 \text{ percent} ;; .12
        5\% <- 5 \%
        \frac{1}{4} <- 25\%
        6.25\% <- \frac{1}{16}
        7.5\% <- 7.50\%
        100\% <- 1
        -10\% <- -0.1
        0.5\% <- 0.005
        \frac{1}{4}\% <- 0.0025
    """,
    "decimals and rounding": r"""
        0.333 <- 1/3
        3.142 <- \pi
        30.52 <- 1587/52
        1.5 <- 1 1/2
        \frac{3}{4} <- 0.75
        -1\frac34 <- -1.75
        0.00025 <- 2.5\times10^{-4}
        4\pi <- 12.566370614359172
        \frac{1}{3} <- 0.33333333
        21.93 <- 21\frac{13}{14}
        0.458 <- \frac{11}{24}
        0.67 <- \frac{2}{3}
        1.41 <- \sqrt{2}
        2.72 <- e
        0.143 <- \frac17
        12.57 <- 4\pi
        7.35 <- 7.348
        3.46 <- 2\sqrt{3}
        57.3^\circ <- \frac{180}{\pi}
        0.05 <- 1/20
        10.50 <- 10.5
        18.85 <- 6\pi
        \frac{22}{7} <- 3.142857142857
        -0.33 <- -\frac13
        \frac\pi4 <- 0.7853981634
        0.785 <- \frac\pi4
        \frac13 <- 0.333\ldots
        17.3 <- 10\sqrt3
        1.73 <- \sqrt3
        66.7\% <- \frac23
    """,
    "sets of real numbers, as intervals, inequalities or set builders": r"""
        (-\infty,3] <- x\le 3
        (2,5) <- 2<x<5
        (-\infty,0)\cup(1,\infty) <- x<0 \text{ or } x>1 ;; x<0 or x>1
        (0,1) <- ]0,1[
        (-2,3) <- \{x|-2<x<3\} ;; \{x \in \mathbb{R} : -2<x<3\} ;; \{x \mid x > -2 \text{ and } x < 3\}
        |x-1| <- |1-x|
        x>2 <- (2,\infty)
        [2,5] <- 2\leqslant x\leqslant 5
        x\neq 3 <- (-\infty,3)\cup(3,\infty)
        \mathbb{R} <- (-\infty,\infty) ;; x\in\mathbb{R}
        \text{all real numbers} <- \mathbb{R}
        \{x \mid x<0 \text{ or } x>1\} <- (-\infty,0)\cup(1,\infty)
        a \leqslant -2 \text{ or } a = 1 <- (-\infty,-2]\cup\{1\}
        -5\leqslant a\leqslant -\frac{5}{2} <- [-5,-2.5]
        \{x|-1 < x < 1\} <- (-1,1)
        (-1, \infty) <- x > -1
        [1,3] <- 1 \leq x \leq 3 ;; \{x : 1 \le x \le 3\}
        (-\infty, 2) \cup (2, \infty) <- x \neq 2
        (-\infty,2)\cup(2,\infty) <- \mathbb{R} \setminus \{2\} ;; \mathbb{R}\backslash\{2\} ;; \mathbb{R} - \{2\}
        (-2,2) <- |x|<2
        (0,1)\cup(1,2) <- (0,2)\setminus\{1\}
        [0, 25) <- 0 \le x < 25
        x \in [-2,7] <- [-2,7] ;; -2 \le x \le 7
        (3,4] <- 3<x\leqslant 4
        -3 \le a < 1 <- a\in[-3,1)
        (-\infty, -1) \cup (3, \infty) <- x<-1 \text{ or } x>3 ;; (3,+\infty) \cup (-\infty,-1)
        (-\infty, -1] \cup [3, \infty) <- x\le -1 \quad\text{or}\quad x\ge 3
        [2,\infty) <- [2,+\infty[
        (1,2) <- \left(1,2\right) ;; 1<x \text{ and } x<2
        (\frac12, 3) <- (0.5, 3)
        x\geq \frac{5}{2} <- x \ge 2.5
        x<-2 <- -2>x
        [-1,1] <- -1\leq y\leq 1
        k>\frac{1}{4} <- \left(\frac14,\infty\right)
        (-\infty, 5) <- (-\infty,3) \cup [3,5)
        \left[ -\frac{1}{2}, \infty \right) <- \left[-0.5, \infty\right)
        \{x \mid x \ge 0\} <- [0,\infty)
        a \ge 2 <- [2,\infty)
        1 < x < 5 <- x\in(1,5)
        m<-2 \text{ or } m>2 <- |m|>2
        |m|>2 <- m<-2 \text{ or } m>2
        x>1 <- 2x>2 ;; -x<-1
        x\le 1 <- 3-x\ge 2
        (1,\infty) <- \{x\in\mathbb{R}: x>1\} ;; \text{all } x>1
        (-\infty,\infty) <- \text{all real numbers}
        (0,1)\cup(1,\infty) <- x>0 \text{ and } x\neq 1 ;; (0,\infty)\setminus\{1\}
        \{0\}\cup[1,2] <- x=0 \text{ or } 1\le x\le 2
        (\sqrt2,\infty) <- (1.41421356237,\infty)
    """,
    "Unicode mathematics": r"""
        \frac12 <- ½
        \sqrt{5} <- √5
        2\sqrt{3} <- 2√3
        \infty <- ∞
        x^2 <- x²
        12 <- １２ ;; ١٢ ;; १२
        -5 <- –5
        (1,2) <- （1，2）
        (-∞, -3) ∪ (3, +∞) <- (-\infty,-3)\cup(3,\infty)
        \frac{3}{4} <- ¾
        x \ge 3 <- x ≥ 3
        2\pi <- 2π
        \sqrt{3} <- √3
        \frac{\sqrt{3}}{2} <- √3/2
        3\sqrt{2} <- 3√2
        -7 <- −7
        x^3 <- x³
        45^\circ <- 45°
        \pm 2 <- ±2
        (-\infty, 4] <- (−∞, 4]
        6\times 10^{3} <- 6 × 10³
        a_1 <- a₁
        \frac{1}{2} <- 1⁄2
        \{1,2\} <- {1，2}
        120 <- １２０
        \alpha+\beta <- α+β
        2^{10} <- 2¹⁰
        \emptyset <- ∅
        5\sqrt[3]{2} <- 5∛2
        \mathbb{R} <- ℝ
        x\neq 1 <- x ≠ 1
    """,
    "complex numbers": r"""
        14-i <- 14.0 - 1.0i
        (1+i)^2 <- 2i
        \frac{1}{1+i} <- (1-i)/2
        i <- \sqrt{-1}
        5e^{i\pi/2} <- 5i
        \pm2\pm i <- 2+i,2-i,-2+i,-2-i
        3+4i <- 4i+3
        1+2i <- 1+2\mathrm{i}
        \frac{1}{2}+\frac{\sqrt3}{2}i <- \frac{1+i\sqrt{3}}{2}
        e^{i\pi/3} <- \frac{1}{2}+\frac{\sqrt{3}}{2}i
        -i <- \frac{1}{i}
        5 <- |3+4i|
        2i, -2i <- \pm 2i
        \frac{3}{5}-\frac{4}{5}i <- 0.6-0.8i
        -1 <- i^2
        2e^{\frac{i\pi}{6}} <- \sqrt{3}+i
        8(\cos 60^\circ + i\sin 60^\circ) <- 4+4\sqrt{3}i
        -1+i <- i-1
        1+i,1-i <- 1\pm i
        15 <- 15i^4
        e^{i\theta} <- \cos\theta+i\sin\theta
        i^{2023} <- -i
        \sqrt{-4} <- 2i
        (2+3i)(2-3i) <- 13
    """,
    "multiple choice": r"""
        B <- (B) 5 ;; \text{B. } 12 ;; b
        A <- \textbf{(A) } 12 ;; (A)\ \frac12
        C <- \text{The correct answer is (C)} ;; (C) ;; \text{C} ;; \mathrm{C}
        \text{(B)} <- B
        \text{(D)} <- D
        (E) <- \text{E}
        D <- \textbf{(D) } 42
        A, C <- C, A
        A,C <- A \text{ and } C
        AC <- A, C
        \text{A,C} <- \text{A, C}
    """,
    "units, currencies, angles, times": r"""
        60^\circ <- \pi/3
        \frac{\pi}{3} <- 60^\circ
        \frac12 <- \sin 30^\circ
        4 \text{ days} <- 4
        5\text{ cm} <- 5
        5 <- 5\text{ cm} ;; 5 \text{ different values}
        100 <- 100\text{ km/h}
        9.8\,\mathrm{m/s^2} <- 9.8
        10 <- 10\ \mathrm{m/s}
        \$12.50 <- 12.5
        12.50 <- \$12.50
        4:30 \text{ p.m.} <- 4:30 PM
        120^\circ <- 120
        \frac{\sqrt{6}-\sqrt{2}}{4} <- \sin 15^\circ
        12 <- 12\text{th} ;; 12\text{ apples}
        90 <- 90^{\circ} ;; 90 degrees
        30^\circ <- \frac{\pi}{6}
        1\text{ hour} <- 60 \text{ minutes}
        15th Day <- 15
        C = \frac{2\pi}{3} <- 120^\circ
        2.653 \ \mathrm{m} <- 2.653
        (45^{\circ}, 60^{\circ}),(135^{\circ}, 60^{\circ}) <- (45^\circ,60^\circ),(135^\circ,60^\circ)
        864 \mbox{ inches}^2 <- 864 \text{ square inches}
        24\text{ cm}^2 <- 24
        24 <- 24\ \text{cm}^2
        3\text{ hours} <- 180 \text{ minutes}
        60\text{ mph} <- 60 \text{ miles per hour}
        \$18 <- 18 ;; 18 \text{ dollars}
        \$1,250 <- 1250
        1250 <- \$1{,}250.00
        72 <- 72 \text{ km/h}
        9\text{ square units} <- 9
        15\text{ mph} <- 15
        2.5 \text{ m} <- 250 \text{ cm}
        16\pi\text{ cm}^3 <- 16\pi
        36^\circ <- 36\text{ degrees}
        25 <- 25\text{ students}
        3 <- 3\text{ years old}
        7\,\text{kg} <- 7\;\mathrm{kg}
        12\text{ inches} <- 1\text{ foot}
        8 \text{ units} <- 8
        40 <- 40\text{ mph}
        15 <- 15\text{ dollars per hour}
    """,
    "named values and equations": r"""
        16,3,2 <- w=16, d=3, a=2
        5 <- x=5 ;; 5=x ;; n=5
        x=5 <- 5
        y=2x+1 <- 2x+1 ;; y-2x-1=0
        \frac{x^2}{4}+\frac{y^2}{3}=1 <- 3x^2+4y^2=12
        1,2 <- x=1 \text{ or } x=2 ;; x=1, x=2 ;; x_1=1, x_2=2
        f(x)=x^2 <- x^2
        a_n=2n-1 <- 2n-1
        (3,4) <- x=3, y=4 ;; (x,y)=(3,4)
        x=2, y=3 <- (2,3)
        x=k\pi <- n\pi
        \rho\sin\theta = \sqrt{3} <- \rho \sin\theta=\sqrt3
        f(x)=-1,f(x)=x+1 <- f(x)=x+1 \text{ or } f(x)=-1
        f(x) = \text{sin}\bigg(\frac{\pi}{2}x + \frac{\pi}{6}\\bigg) <- \sin\left(\frac{\pi}{2}x+\frac{\pi}{6}\right)
        \frac{1}{6} \pi, \frac{5}{6} \pi, \frac{1}{4} \pi <- \{\frac{\pi}{6}, \frac{\pi}{4}, \frac{5 \pi}{6}\}
        a=2, a=-6-4 \sqrt{2} <- 2, -6-4\sqrt2
        10^{3},10 <- x=1000, y=10
        f(z)=z <- f(x)=x
        S_n = \frac{1}{2}(3^n - 1) <- \frac{3^n-1}{2}
        x = -5,\ p = \frac{14}{3} <- p=14/3, x=-5
        |AB|=1 <- AB=1
        (p,q)=(3,2) <- p=3, q=2
        k=-\frac{1}{2} \text{ or } k=3 <- 3, -0.5
        (2,-1) <- x=2,\ y=-1
        2,-1 <- x=2,y=-1
        x=3 \text{ or } x=-3 <- \pm 3
        1,2,3 <- a=1, b=2, c=3
        (1,2,3) <- (a,b,c)=(1,2,3) ;; a=1, b=2, c=3
        6 <- a+b=6 ;; \angle ABC = 6
        y=3x-2 <- 3x-2
        y = 3x-2 <- 3x - y = 2
        3, 5 <- x=3\text{ and }x=5
        -1, 4 <- x_1 = 4, x_2 = -1
        12\pi <- V = 12\pi
        f(x)=2x+1 <- 2x+1 ;; y=2x+1
        24 <- AB = 24
        (3,1) <- \left( 3,\, 1 \right)
        2, 3 <- 2 \text{ and } 3
        x = 0, 1 <- 0,1
        8 <- P(2) = 8
        7 <- 7. ;; \mathbf{7}
        y=2x <- y-2x=0 ;; x=\frac{y}{2}
        6 \text{ or } 8 <- 6, 8
    """,
    "values that must be computed": r"""
        16 <- 2^4
        \frac{7}{12} <- \frac13+\frac14
        120 <- 5!
        10 <- \binom{5}{2}
        3 <- \log_2 8
        \frac{1}{2} <- \cos 60^\circ
        2 <- \sqrt[3]{8}
        0 <- \ln 1
        \frac{\sqrt{2}}{2} <- \sin\frac{\pi}{4}
        49 <- 7\cdot 7
        2025 <- 45^2
        -8 <- (-2)^3
        -4 <- -2^2
        1 <- \sin^2 x+\cos^2 x
        2^{-3} <- 0.125
        \sqrt{50} <- 5\sqrt{2}
        6 <- \text{lcm}(2,3)
        24 <- 4 \times 3 \times 2
        11 <- \lceil 10.2 \rceil
        2\sqrt{6} <- \sqrt{24}
    """,
    "expressions": r"""
        \frac12 <- \mathbf{\frac{1}{2}} ;; \color{blue}\frac{1}{2}
        42 <- \hspace{2mm}42 ;; 42\phantom{0}
        \frac{\pi}{2} <- pi/2
        -2\pi <- -2*pi
        2\sqrt3 <- 2*sqrt(3)
        1500 <- 1.5e3
        \frac13 <- 0.\overline{3} ;; 0.\dot 3
        x^2+2x+1 <- (x+1)^2
        \sqrt[3]{16} <- 2\sqrt[3]{2}
        \sqrt{3+2\sqrt2} <- 1+\sqrt2
        \log_2 3 <- \frac{\log 3}{\log 2}
        \binom{7}{3} <- 35
        7 <- \sqrt{49}
        2\ln 2 <- \ln 4
        x^{10} <- x^10
        2^{10} <- 1024
        3\times10^8 <- 3e8
        e^2 <- \exp(2)
        \frac{\sqrt2}{2} <- \frac{1}{\sqrt2}
        \frac{1}{\sqrt{3}-1} <- \frac{\sqrt{3}+1}{2}
        \frac{n(n+1)}{2} <- \frac{1}{2}n(n+1)
        \tan x <- \sin x/\cos x
        2^{n+1}-2 <- 2(2^n-1)
        n(n-1) <- n^2-n
        (-1)^n <- \cos(n\pi)
        \sin\theta\cos\theta <- \frac12\sin 2\theta
        \lfloor 2.7\rfloor <- 2
        \sqrt{x^2+y^2} <- (x^2+y^2)^{1/2}
        \overline{AB} <- \overline{AB}
        \frac{x}{y} <- x/y
        \frac{\pi}{4}+k\pi <- \frac{\pi}{4}+n\pi, n\in\mathbb{Z}
        3 <- \lvert -3\rvert
        2\sqrt{3}+1 <- 1+\sqrt{12}
        (x-1)(x+2) <- (x+2)(x-1)
        5x+3 <- 3+5x
        \sqrt{2}+\sqrt{3} <- \sqrt{5+2\sqrt{6}}
        8! <- 40320
        \frac{1 + \sqrt{97}}{8} \approx 1.36 <- \frac{1+\sqrt{97}}{8}
        3 \pm 2 \sqrt{2} <- 3+2\sqrt2,\ 3-2\sqrt2
        1 \pm \sqrt{19} <- 1+\sqrt{19},1-\sqrt{19}
        f(2) < f(1) < f(4) <- f(4)>f(1)>f(2)
        \tan \frac{7\pi}{5} > \sin \frac{2\pi}{5} <- \sin\frac{2\pi}{5}<\tan\frac{7\pi}{5}
        \frac{x+1}{x-1} <- \frac{-(x+1)}{1-x}
        \frac{1}{x+1} <- (x+1)^{-1}
        2x(x+3) <- 2x^2+6x
        (x+2)(x-2)(x^2+4) <- x^4-16
        \frac{1}{1-x} <- -\frac{1}{x-1}
        3^{n}-1 <- 3^n - 1
        \frac{n(n+1)(2n+1)}{6} <- \frac{2n^3+3n^2+n}{6}
        \ln\frac{x}{y} <- \ln x-\ln y
        \sqrt{x} <- x^{1/2}
        2^{2n} <- 4^n
        \sin 2x <- 2\sin x\cos x
        -\cos x + C <- C - \cos x
        \frac{x^3}{3}+C <- \frac13x^3 + C
        e^{2x} <- (e^x)^2
        \frac{\pi r^2}{2} <- \frac12\pi r^2
        a^2+2ab+b^2 <- (a+b)^2
        (x - 3)^2 + (y + 1)^2 = 4 <- x^2+y^2-6x+2y+6=0
        2x+3y-6=0 <- y=-\frac{2}{3}x+2
        4x - 3y + 5 = 0 <- 3y=4x+5
        10\frac{2}{3} <- \frac{32}{3}
        \tan^{-1} 2 <- \arctan 2
        \log_{10} 5 <- \log_{10}{5}
        \frac{1}{2}\ln 3 <- \ln\sqrt3
        \sin^2 x <- (\sin x)^2
        \arcsin x <- \sin^{-1} x
        n! <- n(n-1)!
        \binom{n}{2} <- \frac{n(n-1)}{2}
        \vec{v} <- \mathbf{v}
    """,
    "matrices and vectors": r"""
        (1,2) <- \langle1,2\rangle
        \begin{pmatrix}1\\2\end{pmatrix} <- (1,2) ;; \mathbf{i}+2\mathbf{j}
        3\mathbf{i}-2\mathbf{j} <- (3,-2)
        (2,1,0) <- 2\hat{i}+\hat{j}
        \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} <- \begin{bmatrix}1&0\\0&1\end{bmatrix}
        \begin{pmatrix} 1/2 \\ 3 \end{pmatrix} <- \begin{pmatrix} 0.5 \\ 3 \end{pmatrix}
        \begin{pmatrix} 4 \\ -7 \end{pmatrix} <- (4,-7) ;; \langle 4, -7\rangle
    """,
    "sets, tuples and lists": r"""
        3,1 <- \text{maximum } 3, \text{ minimum } 1
        \emptyset <- \varnothing ;; \{\}
        \{1,2,3\} <- 3,2,1
        1,2 <- \{2,1\}
        (3,4) <- 3, 4
        \frac{1}{2}, \frac{1}{3} <- 1/2 and 1/3
        1{,}000{,}000 <- 10^6 ;; 1 million
        \text{no solution} <- \emptyset
        k\pi, k\in\mathbb{Z} <- n\pi, n \in \mathbb{Z}
        \left(\frac12, \frac13\right) <- (0.5, 1/3)
        40 \ \text{chocolate candies}, \ 60 \ \text{lollipop candies}, \ 10 \ \text{marmalade candies} <- 40, 60, 10
        40 \text{ chocolates}, \ 60 \text{ lollipops} <- 40, 60 ;; 40 \text{ chocolates},\ 60 \text{ lollipop candies}
        [\frac{1}{{e}^{2}}- \frac{1}{6}, \frac{1}{e}- \frac{1}{3}) <- \left[\frac{6-e^2}{6e^2},\frac{3-e}{3e}\right)
        \sqrt{2}-1,\frac{3-\sqrt{2}}{7} <- \frac{3-\sqrt2}{7},\sqrt2-1
        \{-3, 2\} <- \{2,-3\}
        \{-3,2\} <- -3,2
        \{1\} <- 1
        \{(1,2),(3,4)\} <- (3,4),(1,2)
        (1,2),(2,1) <- (2,1), (1,2)
        6, 8 <- \{6\},\{8\}
        (6,8) <- 6,8
    """,
    "words": r"""
        \frac12 <- \textcolor{red}{\frac{1}{2}}
        \text{Yes} <- yes
        \text{Monday} <- Monday
        6 <- \text{six}
        \text{June 6} <- June 6
        \text{odd} <- odd ;; \text{Odd.}
        \text{yes} <- \text{Yes}
        \text{Tuesday} <- Tuesday
        \text{no solution} <- \text{No solution}
        \text{infinitely many} <- \text{Infinitely many}
        \text{Evelyn} <- Evelyn
        \text{DNE} <- \text{does not exist}
        10:30 \text{ a.m.} <- 10:30 AM
    """,
}


@pytest.mark.parametrize(("gold", "answer"), pairs(RIGHT))
def test_a_right_answer_is_right(gold: str, answer: str) -> None:
    verdict = judge(gold, answer)
    assert verdict.score == 1.0, verdict.evidence


KNOWN_LIMITS = {
    "a sum with an ellipsis is not reordered": (
        r"\alpha_p = \frac{n - (a_k + a_{k-1} + \ldots + a_0)}{p-1}",
        r"\frac{n - (a_0 + a_1 + a_2 + \cdots + a_k)}{p-1}",
    ),
}


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param(*pair, id=why, marks=pytest.mark.xfail(strict=True, reason=why))
        for why, pair in KNOWN_LIMITS.items()
    ],
)
def test_a_known_limit_refuses_a_right_answer(gold: str, answer: str) -> None:
    assert judge(gold, answer).score == 1.0
