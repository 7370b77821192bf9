"""Experiments' files: what they say, and what is wrong in them."""

from pathlib import Path

import pytest
import yaml

from trl_r1zero.experiments.experiment import Scale, argument, read_experiment
from trl_r1zero.recipe import RecipeError
from trl_r1zero.recipe.yaml_files import format_value

FILE = {
    "question": "Which?",
    "script": "../grpo.py",
    "grid": {"learning_rate": [1e-4, 2e-4]},
    "scales": {
        "small": {"recipe": "small.yaml", "settings": {"group_size": 4}},
        "large": {"recipe": "large.yaml", "grid": {"learning_rate": [1e-6]}, "seeds": [7]},
    },
}


def write(folder: Path, **changes) -> Path:
    path = folder / "lr.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}, sort_keys=False))
    return path


def with_scale(**changes) -> dict:
    return {"scales": {"small": {**FILE["scales"]["small"], **changes}}}


def test_the_first_scale_is_the_default(tmp_path):
    experiment = read_experiment(write(tmp_path))
    assert (experiment.name, experiment.scale_name) == ("lr", "small")
    assert experiment.scale.settings == {"group_size": 4}
    assert experiment.scale.seeds == [0, 1, 2]
    assert list(experiment.scale.labelled()) == ["learning_rate 1e-4", "learning_rate 2e-4"]
    assert experiment.baseline == "learning_rate 1e-4"


def test_a_scale_s_own_values_replace_the_experiment_s(tmp_path):
    experiment = read_experiment(write(tmp_path), "large")
    assert experiment.scale.labelled() == {"learning_rate 1e-6": {"learning_rate": 1e-6}}
    assert experiment.scale.seeds == [7]


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    experiment = read_experiment(write(tmp_path / "here"))
    assert experiment.beside("small.yaml") == Path("here/small.yaml")
    assert experiment.beside("../grpo.py") == Path("grpo.py")
    assert experiment.beside("../../x.py") == tmp_path.parent.resolve() / "x.py"


def test_variants_and_the_grid_are_combined_in_the_file_s_order():
    scale = Scale(
        "r.yaml",
        variants={"a": {"x": 1}, "b": {"x": 2}},
        grid={"y": [True, None], "z": ["word"]},
    )
    assert scale.labelled() == {
        "a, y true, z word": {"x": 1, "y": True, "z": "word"},
        "a, y null, z word": {"x": 1, "y": None, "z": "word"},
        "b, y true, z word": {"x": 2, "y": True, "z": "word"},
        "b, y null, z word": {"x": 2, "y": None, "z": "word"},
    }
    assert Scale("r.yaml").labelled() == {"base": {}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-4, "1e-4"),
        (5e-5, "5e-5"),
        (1.5e-5, "1.5e-5"),
        (0.25, "0.25"),
        (1.0, "1"),
        (0.0, "0"),
        (128, "128"),
        (None, "null"),
        (False, "false"),
        ("grpo_clip", "grpo_clip"),
        ("no", "'no'"),
    ],
)
def test_values_are_shown_as_a_recipe_has_them(value, shown):
    assert format_value(value) == shown


def test_arguments_are_what_the_recipes_command_line_reads():
    assert argument("learning_rate", 1e-4) == "--learning_rate=0.0001"
    assert argument("vllm_server", {"devices": "1"}) == "--vllm_server={devices: '1'}"
    assert argument("prompt", "a, b") == "--prompt=a, b"
    assert argument("num_examples", None) == "--num_examples=null"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questoin": "?"}, "unknown key 'questoin'; did you mean 'question'?"),
        ({"scales": {}}, "scales is empty"),
        ({"scales": {"small": {}}}, "scale 'small': recipe is missing"),
        (with_scale(recipes="x"), "scale 'small': unknown key 'recipes'; did you mean 'recipe'?"),
        (with_scale(gpus="two"), "scale 'small': gpus: got 'two', expected int"),
        (with_scale(seeds=[1, 1]), "seeds: got [1, 1], expected one or more, each once"),
        (with_scale(seeds=[]), "seeds: got [], expected one or more"),
        (with_scale(grid={"learning_rate": []}), "learning_rate has no values"),
        (with_scale(grid={"learning_rate": [1.0, 1.0]}), "two variants have the same label"),
        (with_scale(settings={"seed": 1}), "seed cannot be set here"),
        (with_scale(settings={"output_dir": "x"}), "output_dir cannot be set here"),
        (
            with_scale(baseline="learning_rate 1"),
            "unknown baseline 'learning_rate 1'; did you mean 'learning_rate 1e-4'?",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, message):
    with pytest.raises(RecipeError) as caught:
        read_experiment(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert "lr.yaml" in str(caught.value)


def test_an_unknown_scale(tmp_path):
    with pytest.raises(RecipeError, match="unknown scale 'smal'; did you mean 'small'"):
        read_experiment(write(tmp_path), "smal")
