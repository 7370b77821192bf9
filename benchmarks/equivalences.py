r"""The lenient grader beside math-verify: errors of both kinds, speed and memory.

    python benchmarks/equivalences.py [--pairs PAIRS.jsonl.gz] [--answers FILE.jsonl ...]

Without arguments: pairs that are made here. Each family below is a rule of mathematics with its
reason; what it yields is right or wrong by that rule, whatever a grader says. PAIRS are pairs with
`math_verify_expected` (docs/rewards.md). Of a file with problems' right answers (`answer`, a text
or a list), each one is compared with itself in a sentence, with itself after one digit changed,
and with its neighbour's.
"""

import argparse
import itertools
import json
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb, factorial
from pathlib import Path

from math_verify import parse, verify
from rewards import read_pairs

from trl_r1zero.rewards import math_reward, math_reward_fn
from trl_r1zero.rewards.difference import _decide
from trl_r1zero.rewards.mathd import normalize_mathd
from trl_r1zero.rewards.presentation import undress
from trl_r1zero.rewards.symbolic import normalize_symbolic

Pair = tuple[str, str, bool]  # ground truth, answer, whether it is right
PER_FAMILY = 100
_TIMEOUT = 60  # seconds by the clock: its own few would be errors on a busy machine


def fractions_and_decimals(draw: random.Random) -> Iterator[Pair]:
    """a/b = ka/kb; (a+1)/b is another number; a denominator of 2s and 5s has a finite decimal."""
    a, b, k = draw.randint(1, 40), draw.choice([2, 4, 5, 8, 20, 25]), draw.randint(2, 9)
    yield rf"\frac{{{a}}}{{{b}}}", f"{k * a}/{k * b}", True
    yield rf"\frac{{{a}}}{{{b}}}", str(a / b), True
    yield rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a + 1}}}{{{b}}}", False


def repeating_decimals(draw: random.Random) -> Iterator[Pair]:
    """d digits that repeat are their number over d nines."""
    digits = draw.randint(1, 98)
    truth = Fraction(digits, 99)
    text = rf"0.\overline{{{digits:02d}}}"
    yield f"{truth.numerator}/{truth.denominator}", text, True
    yield f"{truth.numerator}/{truth.denominator}", f"0.{digits:02d}", False


def operators(draw: random.Random) -> Iterator[Pair]:
    """Binomials, factorials and logarithms of small numbers, counted."""
    n, k, b = draw.randint(4, 9), draw.randint(1, 3), draw.randint(2, 5)
    yield str(comb(n, k)), rf"\binom{{{n}}}{{{k}}}", True
    yield str(comb(n, k) + 1), rf"\binom{{{n}}}{{{k}}}", False
    yield str(factorial(k + 2)), f"{k + 2}!", True
    yield str(n), rf"\log_{{{b}}} {b**n}", True
    yield str(n), rf"\lfloor {n}.5 \rfloor", True
    yield str(n), rf"\lceil {n}.5 \rceil", False


def half_lines(draw: random.Random) -> Iterator[Pair]:
    """x <= a is (-oo, a]; the end and its being closed matter."""
    a = draw.randint(-20, 20)
    yield rf"(-\infty,{a}]", rf"x \le {a}", True
    yield rf"({a},\infty)", rf"{a} < x", True
    yield rf"(-\infty,{a}]", rf"x < {a}", False
    yield rf"[{a},{a + 3})", rf"{a} \le x < {a + 3}", True
    yield rf"(-\infty,{a})\cup({a},\infty)", rf"x \ne {a}", True


def equations(draw: random.Random) -> Iterator[Pair]:
    """y = mx + c is mx - y + c = 0, also times k; another c is another line."""
    m, c, k = draw.randint(2, 9), draw.randint(1, 9), draw.randint(2, 5)
    yield f"y = {m}x + {c}", f"{m}x - y + {c} = 0", True
    yield f"y = {m}x + {c}", f"{k * m}x - {k}y + {k * c} = 0", True
    yield f"y = {m}x + {c}", f"y = {m}x + {c + 1}", False
    yield f"x = {m}", f"{m} = x", True


def sets_and_lists(draw: random.Random) -> Iterator[Pair]:
    """A set has no order and no repetition; a point has an order."""
    a, b, c = draw.sample(range(1, 50), 3)
    yield rf"\{{{a},{b},{c}\}}", rf"\{{{c},{a},{b}\}}", True
    yield rf"\{{{a},{b}\}}", rf"\{{{a},{b},{a}\}}", True
    yield rf"\{{{a},{b}\}}", rf"\{{{a},{b},{c}\}}", False
    yield f"({a},{b})", f"({b},{a})", False
    yield f"{a}, {b}", f"{b} and {a}", True


def numbers_as_written(draw: random.Random) -> Iterator[Pair]:
    """Percent, mixed numbers, powers of ten, groups of thousands, degrees, bases."""
    n, e = draw.randint(2, 99), draw.randint(2, 9)
    yield rf"{n}\%", str(Fraction(n, 100)), True
    yield rf"{n}\%", str(n), True
    yield f"{n}/{n + 1}", rf"{n}\frac{{1}}{{{n + 1}}}", False
    yield f"{3 * n + 1}/3", rf"{n}\frac{{1}}{{3}}", True
    yield str(n * 10**e), rf"{n} \times 10^{{{e}}}", True
    yield str(n * 1000), f"{n},000", True
    yield rf"{n}^\circ", f"{n} degrees", True
    yield rf"{n}^\circ", f"{n + 1} degrees", False
    yield f"{n:b}_2", f"{n:b}_{{2}}", True
    yield f"{n:b}_2", f"{n:b}_{{3}}", False


def algebra(draw: random.Random) -> Iterator[Pair]:
    """(x+a)(x+b) = x^2 + (a+b)x + ab; sqrt(k^2 n) = k sqrt(n); a trigonometric identity."""
    a, b, k = draw.randint(1, 9), draw.randint(1, 9), draw.randint(2, 7)
    yield f"(x+{a})(x+{b})", f"x^2 + {a + b}x + {a * b}", True
    yield f"(x+{a})(x+{b})", f"x^2 + {a + b}x + {a * b + 1}", False
    yield rf"{k}\sqrt{{3}}", rf"\sqrt{{{3 * k * k}}}", True
    yield rf"{k}\sqrt{{3}}", rf"\sqrt[3]{{{3 * k * k}}}", False
    yield rf"\frac{{x+{a}}}{{{k}}}", rf"x+\frac{{{a}}}{{{k}}}", False
    yield rf"{a}\sin^2 x", rf"{a} - {a}\cos^2 x", True


def matrices(draw: random.Random) -> Iterator[Pair]:
    """Matrices and vectors, entry by entry."""
    a, b, c, d = draw.sample(range(-9, 10), 4)
    truth = rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d} \end{{pmatrix}}"
    yield truth, rf"\begin{{bmatrix}}{a}&{b}\\{c}&{2 * d}/2\end{{bmatrix}}", True
    yield truth, rf"\begin{{pmatrix}} {a} & {c} \\ {b} & {d} \end{{pmatrix}}", False
    yield f"({a},{b})", rf"\langle {a}, {b} \rangle", True


def words(draw: random.Random) -> Iterator[Pair]:
    """Presentation: the same answer, however it is set in type."""
    n = draw.randint(2, 999)
    dress = draw.choice(
        [r"\textcolor{red}{%s}", "**%s**", r"\boldsymbol{%s}", "The answer is $%s$.", r"\Large %s",
         r"\text{Answer: }%s", "`%s`", r"\begin{align*} %s \end{align*}", "%s is the answer."]
    )  # fmt: skip
    text = rf"\frac{{{n}}}{{{n + 1}}}"
    yield text, dress.replace("%s", text), True
    yield text, dress.replace("%s", rf"\frac{{{n}}}{{{n + 2}}}"), False


def separators(draw: random.Random) -> Iterator[Pair]:
    """Thousands in a number, and commas between numbers."""
    a, b = draw.randint(2, 99), draw.randint(101, 999)
    yield f"{a}{b}", f"{a},{b}", True
    yield f"{a}{b}", rf"{a}{{,}}{b}", True
    yield f"{a}{b}", rf"{a}\,{b}", True
    yield f"{a}{b}", f"{a}, {b}", False
    yield f"({a}, {b})", f"({a},{b})", True
    yield f"({a},{b})", f"{a}{b}", False
    yield f"{a}.{b}", f"{a},{b + 1}", False
    yield rf"\${a}{b}", f"{a},{b} dollars", True


def measures(draw: random.Random) -> Iterator[Pair]:
    """1 km = 1000 m, 1 h = 60 min, 1 dollar = 100 cents; areas are no lengths."""
    n = draw.randint(2, 99)
    yield rf"{n}\text{{ km}}", rf"{n * 1000}\text{{ m}}", True
    yield rf"{n}\text{{ km}}", rf"{n}\text{{ m}}", False
    yield rf"{n}\text{{ hours}}", f"{n * 60} minutes", True
    yield rf"{n}\text{{ m}}^2", rf"{n}\text{{ m}}", False
    yield rf"\${n}", f"{n * 100} cents", True
    yield f"{n % 11 + 1}:{n % 50 + 10} pm", f"{n % 11 + 1}:{n % 50 + 10} PM", True
    yield f"{n % 11 + 1}:{n % 50 + 10} pm", f"{n % 11 + 1}:{n % 50 + 10} am", False
    yield f"{n}", rf"{n}\text{{ cm}}", True


FAMILIES = (
    fractions_and_decimals, repeating_decimals, operators, half_lines, equations, sets_and_lists,
    numbers_as_written, algebra, matrices, words, separators, measures,
)  # fmt: skip


def made_pairs() -> list[Pair]:
    """2,400 pairs, 200 of each family."""
    pairs: list[Pair] = []
    for family in FAMILIES:
        draw = random.Random(family.__name__)
        endless = itertools.chain.from_iterable(family(draw) for _ in itertools.count())
        pairs += itertools.islice(endless, 2 * PER_FAMILY)
    return pairs


def perturbed(rows: list[list[str]]) -> list[Pair]:
    """Each answer in a sentence, with its last digit changed, and beside that of the next row."""
    pairs = []
    for row, (neighbour, *_) in zip(rows, rows[1:] + rows[:1], strict=True):
        for gold in dict.fromkeys(row):
            pairs.append((gold, f"The answer is ${gold.strip('$')}$.", True))
            digit = re.search(r"\d(?=\D*\Z)", gold)
            if digit is not None:
                other = str((int(digit[0]) + 1) % 10)
                pairs.append((gold, gold[: digit.start()] + other + gold[digit.end() :], False))
            if _skeleton(gold) != _skeleton(neighbour):
                pairs.append((gold, neighbour, False))
    return pairs


def _skeleton(gold: str) -> str:
    """What is left of an answer without anything that could be presentation."""
    return re.sub(r"\A\w+\s*=|\\(?:left|right|[dt]?frac|text|mathrm|circ)|[^\w.-]", "", gold)


def answers_of(path: Path) -> list[list[str]]:
    """The right answers of each problem in a file, as they stand there."""
    rows = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    return [
        [str(gold).strip() for gold in (row if isinstance(row, list) else [row])] for row in rows
    ]


def by_math_verify(truth: str, answer: str) -> bool:
    text = answer if "$" in answer else f"${answer}$"
    sides = [parse(side, parsing_timeout=_TIMEOUT) for side in (f"${truth}$", text)]
    return bool(verify(*sides, timeout_seconds=_TIMEOUT))


GRADERS: dict[str, Callable[[str, str], bool]] = {
    "`math_reward_fn`": lambda truth, answer: bool(math_reward_fn(answer, truth)["answer_reward"]),
    "math-verify": by_math_verify,
}


def report(name: str, pairs: list[Pair], repeats: int) -> None:
    """One row of the table for each grader; they take turns with all pairs, `repeats` times."""
    errors = {grader: [0, 0] for grader in GRADERS}
    speeds: dict[str, list[float]] = {grader: [] for grader in GRADERS}
    slowest: dict[str, list[float]] = {grader: [] for grader in GRADERS}
    for repeat, (grader, grade) in itertools.product(range(repeats), GRADERS.items()):
        forget()
        times = []
        for truth, answer, right in pairs:
            start = time.process_time()
            given = grade(truth, answer)
            times.append(time.process_time() - start)
            errors[grader][given] += repeat == 0 and given != right
        speeds[grader].append(len(times) / sum(times))
        slowest[grader].append(sorted(times)[int(len(times) * 0.99)] * 1e3)
    theirs = speeds["math-verify"]
    for grader, (rejected, accepted) in errors.items():
        ratios = sorted(ours / other for ours, other in zip(speeds[grader], theirs, strict=True))
        print(
            f"| {name} | {len(pairs):,} | {grader} | {1 - (rejected + accepted) / len(pairs):.1%} "
            f"| {rejected} | {accepted} | {statistics.median(speeds[grader]):,.0f} "
            f"| {statistics.median(ratios):.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f}) "
            f"| {statistics.median(slowest[grader]):.1f} |",
            flush=True,
        )


def forget() -> None:
    """Empty our caches of texts, so that a repetition is as the first time."""
    for cache in (undress, math_reward._try, normalize_mathd, normalize_symbolic, _decide):
        cache.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--answers", type=Path, nargs="*", default=[])
    parser.add_argument("--sample", type=int, help="every n-th pair only, so many of each set")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    sets = {"made": made_pairs()}
    for path in arguments.answers:
        sets[path.stem] = perturbed(answers_of(path))
    if arguments.pairs:
        cases = [pair for pair in read_pairs(arguments.pairs) if "math_verify_expected" in pair]
        sets["math-verify's own"] = [
            (str(case["ground_truth"]), case["response"], bool(case["math_verify_expected"]))
            for case in cases
        ]
    for grade in GRADERS.values():  # imports are not what is compared
        for text in (r"\sqrt{x}+\frac{3}{10}", r"\begin{pmatrix} 1 \\ x \end{pmatrix}", "5 apples"):
            grade(text, text.replace("x", "y"))
    print("| pairs | n | grader | agrees | right called wrong | wrong called right | pairs per CPU "
          "second | times math-verify | p99 ms |\n"
          "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")  # fmt: skip
    for name, pairs in sets.items():
        step = max(1, len(pairs) // arguments.sample) if arguments.sample else 1
        report(name, pairs[::step], arguments.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of the process, both graders: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
