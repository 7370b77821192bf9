"""The shape of the package: who imports whom, and what is public."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_r1zero
from trl_r1zero import edition_2026

PACKAGE = Path(trl_r1zero.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A row imports only from itself and from rows above it.
LAYERS = (
    "common",
    "functional",
    "rewards",
    "data",
    "devices",
    "generation",
    "grading",
    "evaluation",
    "trainers",
    "recipe",
    "runs",
    "reports",
    "watch",
    "experiments",
    "doctor",
    "leaderboard",
    "commands",
    "top",
)
# Except that these two know nothing of one another.
INDEPENDENT = {("functional", "rewards"), ("rewards", "functional")}
MAX_PACKAGE_LINES = 39_800
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8


def layer(module: str) -> str:
    """trl_r1zero.data.tasks.math -> data; a module beside the packages, and the root -> top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "top"


def module_name(path: Path) -> str:
    parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def condition_of(node: ast.stmt) -> str:
    return ast.unparse(node.test) if isinstance(node, ast.If) else ""


def imports(path: Path, for_types: bool = True) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in condition_of(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            # `from .trainers import timing` names a module, `from .timing import StepTimer` none.
            names |= {
                name if (name := f"{source}.{alias.name}") in NAMES else source
                for alias in node.names
            }
    return names


def imported_layers(path: Path) -> set[str]:
    return {layer(name) for name in imports(path) if name.split(".")[0] == PACKAGE.name}


def in_layer(*names: str) -> list[Path]:
    return [path for path in MODULES if layer(module_name(path)) in names]


# Layers


def test_every_package_is_a_layer():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LAYERS) - {"top"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_row_imports_only_from_rows_above(path):
    own = layer(module_name(path))
    allowed = set(LAYERS[: LAYERS.index(own) + 1])
    allowed -= {other for name, other in INDEPENDENT if name == own}
    assert imported_layers(path) <= allowed


def test_imports_are_seen():
    """The test above would pass too if it saw nothing."""
    assert imported_layers(PACKAGE / "trainers" / "grpo_trainer.py") >= {
        "functional",
        "generation",
        "evaluation",
        "trainers",
    }
    task_arguments = PACKAGE / "recipe" / "task_arguments.py"
    assert imported_layers(task_arguments) >= {"data", "rewards", "trainers"}
    assert "torch" in imports(PACKAGE / "functional" / "masking.py")


@pytest.mark.parametrize("path", in_layer("functional"), ids=module_name)
def test_functional_needs_torch_only(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert packages <= {"torch", PACKAGE.name, *sys.stdlib_module_names}


@pytest.mark.parametrize("path", in_layer("rewards"), ids=module_name)
def test_rewards_need_no_torch(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert not packages & {"torch", "transformers", "trl", "accelerate", "datasets", "peft"}


@pytest.mark.parametrize("statement", ["import trl_r1zero", "import trl_r1zero.rewards"])
def test_import_without_torch(statement):
    code = f"{statement}; import sys; print({{'torch', 'transformers', 'trl'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Sizes


def functions(path: Path) -> list[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_functions_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines; split it"
    lengths = {node.name: 1 + (node.end_lineno or 0) - node.lineno for node in functions(path)}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_functions_have_few_parameters(path):
    """What the handout names has its parameters, and so have formulas and trainers."""
    exempt = {*PUBLIC_NAMES, *edition_2026.__all__, "__init__"}
    if layer(module_name(path)) == "functional":
        return
    for node in functions(path):
        names = [
            arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        ]
        count = len([name for name in names if name not in ("self", "cls")])
        assert count <= MAX_PARAMETERS or node.name in exempt, f"{node.name}: {count} parameters"


def test_the_package_grows_knowingly():
    total = sum(path.read_text(encoding="utf-8").count("\n") for path in MODULES)
    assert total <= MAX_PACKAGE_LINES


def test_no_module_imports_itself_through_others():
    """Neither at the top nor within functions."""
    graph = {module_name(path): imports(path, for_types=False) & NAMES for path in MODULES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


# Public names

PUBLIC_NAMES = [
    "__version__",
    "masked_mean",
    "masked_normalize",
    "compute_entropy",
    "get_response_log_probs",
    "compute_group_advantages",
    "compute_group_normalized_rewards",
    "compute_naive_policy_gradient_loss",
    "compute_grpo_clip_loss",
    "compute_grpo_no_clip_loss",
    "compute_policy_gradient_loss",
    "aggregate_loss",
    "sft_microbatch_train_step",
    "grpo_microbatch_train_step",
    "r1_zero_reward_fn",
    "question_only_reward_fn",
    "math_reward_fn",
    "explain",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "Prompt",
    "load_prompt",
    "get_task",
    "tokenize_prompt_and_output",
    "PackedSFTDataset",
    "iterate_batches",
    "SamplingConfig",
    "Completion",
    "generate",
    "log_generations",
    "evaluate_vllm",
    "R1ZeroGRPOConfig",
    "R1ZeroGRPOTrainer",
    "R1ZeroSFTConfig",
    "R1ZeroSFTTrainer",
    "ExpertIterationConfig",
    "ExpertIterationTrainer",
    "InstructionTuningConfig",
    "make_instruction_tuning_trainer",
    "R1ZeroDPOConfig",
    "R1ZeroDPOTrainer",
    "compute_per_instance_dpo_loss",
]


def test_public_names():
    assert trl_r1zero.__all__ == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_is_importable(name):
    assert getattr(trl_r1zero, name) is not None
    assert name in dir(trl_r1zero)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trl_r1zero' has no attribute 'masked_men'"):
        trl_r1zero.masked_men  # noqa: B018


@pytest.mark.parametrize("package", [name for name in LAYERS if name not in ("top", "data")])
def test_packages_export_what_they_say(package):
    module = importlib.import_module(f"trl_r1zero.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("name", [name for name in PUBLIC_NAMES if name != "__version__"])
def test_public_names_are_documented_and_typed(name):
    thing = getattr(trl_r1zero, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(
            parameter.annotation is not inspect.Parameter.empty
            for parameter in signature.parameters.values()
        )


# Trainers


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("R1ZeroGRPOTrainer", 2),
        ("R1ZeroSFTTrainer", 2),
        ("R1ZeroDPOTrainer", 2),
        ("ExpertIterationTrainer", 3),
    ],
)
def test_trainers_are_flat(name, most):
    """What is theirs besides TRL's trainer is in attributes, not in mixins."""
    ours = [cls for cls in getattr(trl_r1zero, name).__mro__ if "trl_r1zero" in cls.__module__]
    assert len(ours) <= most


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_is_put_in_place_of_another(path):
    """`sys.modules` is read, if at all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = getattr(node, "targets", [])
        assert not any(ast.unparse(target).startswith("sys.modules[") for target in targets)


def test_private_names_of_others_are_in_trl_compat():
    """Outside of it, `x._name` is a name that the trainers' modules define or assign."""
    # Of single settings of transformers, and of its own callback for wandb, in a module for each.
    own = {"_attn_implementation", "_setup_devices", "_initialized", "_wandb"}
    used: dict[str, set[str]] = {}
    for path in in_layer("trainers"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                used.setdefault(node.attr, set()).add(path.stem)
    strange = {name: where - {"trl_compat"} for name, where in used.items() if name not in own}
    assert not any(strange.values()), strange


LIGHT = ("runs.logged_run", "runs.index", "reports.report", "reports.comparison", "evaluation")


def test_what_only_reads_runs_needs_no_torch():
    """Neither do the commands that report and compare."""
    code = f"import sys; {'; '.join(f'import trl_r1zero.{name}' for name in LIGHT)}; " + (
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
