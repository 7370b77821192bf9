"""The nearest name, and the wording for a name that is not known."""

import pytest

from trl_r1zero.common.naming import did_you_mean, unknown_name_message


@pytest.mark.parametrize(
    ("got", "suggestion"), [("mat", "; did you mean 'math'?"), ("xyz", ""), (1, ""), (None, "")]
)
def test_the_nearest_name(got, suggestion):
    assert did_you_mean(got, ("gsm8k", "math")) == suggestion


def test_the_message_says_what_is_allowed():
    assert unknown_name_message("task", "mat", ("math", "gsm8k")) == (
        "unknown task 'mat'; did you mean 'math'? Allowed: gsm8k, math."
    )
    assert unknown_name_message("task", "x", ()) == "unknown task 'x'; Allowed: (none)."
