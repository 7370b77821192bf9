"""No text of a model or a ground truth reaches an interpreter, and no text makes the grader fail
or hang."""

import ast
import builtins
import importlib
import sys
from pathlib import Path

import pytest
from bounded_work import bounded_work
from hypothesis import given, settings
from hypothesis import strategies as st

import trl_r1zero.rewards
from trl_r1zero.rewards import (
    bound_counts,
    explain,
    math_reward_fn,
    parse_gsm8k_response,
    parse_mmlu_response,
    question_only_reward_fn,
    r1_zero_reward_fn,
    reset_bound_counts,
)
from trl_r1zero.rewards.bounds import LIMITS, one_reward
from trl_r1zero.rewards.difference import formula_is_zero

PACKAGE = Path(trl_r1zero.rewards.__file__).parent
FORBIDDEN_NAMES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "sympify",
    "parse_expr",
    "lambdify",
    "system",
    "popen",
}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "subprocess", "code", "torch", "transformers"}
# What may be imported besides the standard library, and where only.
THIRD_PARTY = {
    "sympy": {"algebra.py"},
    "mpmath": {"algebra.py"},
    "pylatexenc": {"latex_text.py"},
    "math_verify": {"latex_stage.py"},
}


def _trees() -> dict[str, ast.Module]:
    return {
        path.name: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_no_module_of_the_package_names_an_interpreter():
    for name, tree in _trees().items():
        for node in ast.walk(tree):
            used = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}.get(type(node))
            if used is None:
                continue
            word = getattr(node, used)
            # `re.compile` is the one harmless bearer of such a name.
            if (
                isinstance(node, ast.Attribute)
                and word == "compile"
                and getattr(node.value, "id", "") == "re"
            ):
                continue
            assert word.split(".")[-1] not in FORBIDDEN_NAMES, (name, node.lineno, word)


def test_imports_stay_within_the_list():
    for name, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                top = module.split(".")[0]
                assert top not in FORBIDDEN_MODULES, (name, module)
                own = module.startswith(("trl_r1zero.rewards", "trl_r1zero.common.naming"))
                if top not in sys.stdlib_module_names and not own:
                    assert name in THIRD_PARTY.get(top, set()), (name, module)


def test_sympy_is_given_objects_and_never_text():
    """Only constructors and functions of expressions are used; none of them parses a string."""
    constructors = "Integer Symbol Float sqrt log frac re im factorial factorial2"
    allowed = {*constructors.split(), "pi", "oo", "zoo", "nan", "I", "simplify"}
    for node in ast.walk(_trees()["algebra.py"]):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sympy"
        ):
            assert node.attr in allowed, node.attr


def test_importing_the_rewards_imports_neither_torch_nor_math_verify():
    code = (
        "import sys, trl_r1zero.rewards as r; "
        "r.r1_zero_reward_fn('</think> <answer>5</answer>', '5'); "
        "heavy = ('torch', 'transformers', 'math_verify', 'latex2sympy2_extended'); "
        "bad = [m for m in heavy if m in sys.modules]; "
        "sys.exit(str(bad) if bad else 0)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _payloads(target: Path) -> list[str]:
    python = f"open({str(target)!r},'w')"
    octal = "".join(f"\\{ord(char):03o}" for char in python)
    unicode_escape = "".join(f"\\u{ord(char):04x}" for char in python)
    hexadecimal = "".join(f"\\x{ord(char):02x}" for char in python)
    full_width = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in python)
    bold = "".join(
        chr(0x1D41A + ord(char) - ord("a")) if "a" <= char <= "z" else char for char in python
    )
    payloads = [python, f"__import__('os').{python}", f"eval({python!r})", full_width, bold]
    for escaped in (octal, unicode_escape, hexadecimal):
        payloads += [
            f"sqrt('{escaped}')",
            f"frac('{escaped}')",
            f'("{escaped}")',
            f"'{escaped}'",
            escaped,
        ]
        payloads += [f"sqrt(f'{{{escaped}}}')", f"(lambda:{escaped})()", f"[{escaped}][0]"]
    return payloads


def test_payloads_create_no_file(tmp_path, monkeypatch):
    target = tmp_path / "created"
    # Importing a module executes it: sympy and pylatexenc are imported before it is forbidden.
    formula_is_zero("(sqrt(x))-(sqrt(x)*1)")
    r1_zero_reward_fn(r"</think> <answer>\begin{pmatrix}1\end{pmatrix}</answer>", r"\frac{1}{2}")

    def refuse(*args, **kwargs):
        raise AssertionError("text was about to be executed")

    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, refuse)
    monkeypatch.setattr("sympy.parsing.sympy_parser.parse_expr", refuse)
    monkeypatch.setattr("sympy.parsing.sympy_parser.eval_expr", refuse)
    for payload in _payloads(target):
        for truth in ("x", r"\frac{1}{2}", "(1,2)", payload + "+0"):
            assert (
                r1_zero_reward_fn(f"</think> <answer>{payload}</answer>", truth)["format_reward"]
                == 1.0
            )
            question_only_reward_fn(f"\\boxed{{{payload}}}", truth)
        # The letter guard of the text stage is passed by too.
        assert formula_is_zero(f"(1)-({payload})")[0] is False
    assert not target.exists()
    assert list(tmp_path.iterdir()) == []


FRAGMENTS = [
    "</think> <answer>", "</answer>", "\\boxed{", "}", "{", "\\frac", "\\sqrt[3]", "\\text{", "x",
    "y", "2", "10", "0.5", "^", "**", "!", "/", "+", "-", "(", ")", "[", "]", ",", "1e9",
    "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", "$", "%", " ", "\n", "\\pi", "sqrt(", "ln(",
    "oo", "\u0665", "\u00bd", "\ud800", "million", " cm", "_", "\\left(", "=",
    "\\pm", "\\sqrt[", "\\log_", "\\sin", "|", "\\{", "\\cup",
]  # fmt: skip
PIECES = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)
TEXTS = (
    st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
    | st.text(max_size=60)
    # What multiplies with its nesting shows in repetitions only.
    | st.builds(
        lambda unit, n, rest: unit * n + rest, PIECES, st.sampled_from([9, 99, 400]), PIECES
    )
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS)
def test_any_text_gets_the_same_reward_twice_with_bounded_work(response, truth):
    for grade in (r1_zero_reward_fn, question_only_reward_fn, math_reward_fn):
        for text in (response, f"</think> <answer>{response}</answer>", f"\\boxed{{{response}}}"):
            with bounded_work():
                rewards = grade(text, truth)
            assert rewards == grade(text, truth)
            assert set(rewards) == {"format_reward", "answer_reward", "reward"}
            assert rewards["reward"] <= min(rewards["answer_reward"], rewards["format_reward"])
    parse_gsm8k_response(response)
    parse_mmlu_response({"options": [truth, "a", "b", "c"]}, response)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_an_answer_equals_itself(text):
    if "answer>" in text or "\\boxed" in text:
        return
    explanation = explain(f"</think> <answer>{text}</answer>", text)
    assert explanation.answer_reward == 1.0
    assert explanation.rule == "identical"


def test_every_module_has_a_docstring_and_imports():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        assert importlib.import_module(name).__doc__, name


@pytest.mark.parametrize("size", [10_000, 1_000_000])
@pytest.mark.parametrize(
    "piece", ["{}", "{", "}", "\\text{", "\\begin{array}{", "1,", "a ", "\\sqrt[", "\\frac{", "^ "]
)
def test_long_repetitions_are_graded_with_bounded_work(piece, size):
    text = piece * (size // len(piece))
    with bounded_work():
        r1_zero_reward_fn(f"</think> <answer>{text}</answer>", "x+1")
    with bounded_work():
        question_only_reward_fn(f"\\boxed{{{text}}}", "x+1")


def test_many_ground_truths_share_one_allowance_of_algebra():
    """Twenty formulas that would each spend all of sympy's calls spend them once."""
    formula = "-4-2.0+sqrt(18)+.5sqrt(3)"
    other = "9-1pi"
    answer = f"sqrt(({formula})**2+2*({formula})*({other})+({other})**2)-({other})"
    truths = [f"{formula}+{i}-{i}" for i in range(20)]
    reset_bound_counts()
    with one_reward() as calls_left:
        rewards = r1_zero_reward_fn(f"</think> <answer>{answer}</answer>", truths)
    spent = LIMITS["algebra_calls"] - calls_left[0]
    assert LIMITS["algebra_calls"] < spent < 1.1 * LIMITS["algebra_calls"]
    assert rewards == {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
    assert bound_counts()["algebra_calls"] >= 2


@pytest.mark.parametrize(
    "text",
    [
        r"\begin{pmatrix}x&1\\" * 16 + "1" + r"\end{pmatrix}" * 16,
        r"\begin{pmatrix}i&" * 100,
        r"|\begin{pmatrix}!\\" * 30,
        r"\begin{array}" + "&" * 3000 + "x" * 3000 + r"\end{array}",
        r"\sqrt[i\log_" * 60,
        r"1;\sqrt[" * 200,
        r"\sqrt[or" * 300,
    ],
    ids=lambda text: text[:20],
)
def test_nested_environments_and_arguments_do_not_multiply(text):
    for response, truth in (("2", text), (text, "2"), (text, text + "+0")):
        with bounded_work():
            r1_zero_reward_fn(f"</think> <answer>{response}</answer>", truth)
            math_reward_fn(f"</think> <answer>{response}</answer>", truth)
