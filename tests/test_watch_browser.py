"""The page in a real browser: Debian's chromium and chromedriver, driven by selenium.

apt install chromium chromium-driver; pip install selenium
"""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_metrics

from trl_r1zero.common.folder_lock import holding
from trl_r1zero.watch import write_page
from trl_r1zero.watch.server import PageServer

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("no chromium and chromedriver here", allow_module_level=True)

GROUP = 8


def make_run(folder: Path, questions: int = 6, reward: float = 0.1, **settings: Any) -> Path:
    """A GRPO run of two steps with rollouts of both, whose answers are right by turns."""
    lines: list[dict] = [
        {"step": step, "grpo_step": step, "elapsed_seconds": 10.0 * step, "reward": reward * step,
         "grad_norm": 1.0, "entropy": 0.5, "length/mean": 12.0, "seconds/step": 9.0,
         "gpu_memory_gib": 3.0 + step}
        for step in (1, 2)
    ]  # fmt: skip
    lines += [{"step": 2, "grpo_step": 2, "elapsed_seconds": 21.0, "eval_accuracy": 0.5,
               "eval_accuracy_stderr": 0.1}]  # fmt: skip
    write_metrics(folder, lines)
    (folder / "config.json").write_text(json.dumps({"n_grpo_steps": 4, **settings}))
    (folder / "rollouts" / "tokens").mkdir(parents=True)
    for step in (1, 2):
        rows = [
            {"prompt": f"Solve it.\nUser: {n} + {n}\nAssistant:", "ground_truth": str(2 * n),
             "response": f" {2 * n if n and right else -1} </answer>", "length": 5 + n,
             "reward": float(n and right), "answer_reward": float(n and right),
             "format_reward": 1.0, "advantage": 0.5, "truncated": n == 1, "rule": "string_equal"}
            for n in range(questions) for right in [i % 2 for i in range(GROUP)]
        ]  # fmt: skip
        tokens = [
            {"tokens": [[" x", -2.0, 1.0, 0.5], [row["response"], -0.1, 0.0, 1.5]]} for row in rows
        ]
        for name, table in (("rollouts", rows), ("rollouts/tokens", tokens)):
            text = "".join(json.dumps(row) + "\n" for row in table)
            (folder / name / f"grpo_step_{step:05d}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.implicitly_wait(20)
    yield driver
    driver.quit()


class Browser:
    """What a person does with the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def wait(self, condition: str) -> None:
        wait = WebDriverWait(self.driver, 30)
        wait.until(lambda driver: driver.execute_script(f"return {condition}"), condition)

    def open_answers(self) -> None:
        self.one("#tab-answers").click()
        self.wait("document.querySelectorAll('.row').length > 0")

    def set(self, name: str, value: str) -> None:
        """As a person's input does."""
        self.driver.execute_script(
            "const field = document.getElementById('filters')[arguments[0]];"
            "field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}));",
            name,
            value,
        )

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def browser(driver) -> Iterator[Browser]:
    driver.set_window_size(1200, 900)
    browser = Browser(driver)
    browser.errors()
    yield browser
    assert browser.errors() == []


@pytest.fixture
def file_page(browser, tmp_path) -> Browser:
    run = make_run(tmp_path / "run_a")
    with holding(run):
        page = write_page(run)
    browser.driver.get(page.as_uri())
    return browser


def test_the_file_shows_curves_and_how_far_the_run_is(file_page):
    titles = [heading.text for heading in file_page.all(".panel h2")]
    assert "Training reward" in titles and "Seconds of an update, by part" in titles
    assert "GPU memory of the trainer, peak so far" in titles
    assert len(file_page.all(".panel canvas")) == len(titles)
    assert "running · GRPO step 2 of 4" in file_page.text("#states")


def test_questions_are_found_by_filters_and_keys(file_page):
    file_page.open_answers()
    assert file_page.text("#count") == "48 of 48 answers, 6 of 6 questions"
    assert file_page.text("#row-0 .text") == "0 + 0"
    assert len(file_page.all(".answer")) == GROUP
    file_page.set("verdict", "mixed")
    assert file_page.text("#count") == "40 of 48 answers, 5 of 6 questions"
    file_page.set("verdict", "right")
    assert file_page.text("#count") == "20 of 48 answers, 5 of 6 questions"
    file_page.one("#questions").send_keys(webdriver.Keys.ARROW_DOWN)
    assert file_page.text("#question h2") == "2 + 2"
    file_page.set("longest", "6")
    assert file_page.text("#count") == "4 of 48 answers, 1 of 6 questions"
    file_page.set("longest", "")
    file_page.set("verdict", "truncated")
    assert file_page.text("#count") == "8 of 48 answers, 1 of 6 questions"
    file_page.set("verdict", "")
    file_page.set("text", "5 + 5")
    assert file_page.text("#question h2") == "5 + 5"


def test_tokens_are_coloured_and_a_question_is_followed_over_steps(file_page):
    file_page.open_answers()
    file_page.set("colour", "1")
    colours = [
        span.value_of_css_property("background-color")
        for span in file_page.all(".answer span")[1:3]
    ]
    assert all(colour.startswith("rgba(213, 94, 0") for colour in colours)
    assert colours[0] != colours[1]
    file_page.one("#over-steps").click()
    assert file_page.text("#steps h2").startswith("rollouts, step 1: 0 of 8 right")


def test_tokens_are_coloured_by_ratio_red_where_it_fell(file_page):
    file_page.open_answers()
    file_page.set("colour", "3")
    spans = file_page.all(".answer span")[1:3]
    fell, rose = (span.value_of_css_property("background-color") for span in spans)
    assert fell.startswith("rgba(213, 94, 0") and rose.startswith("rgba(0, 114, 178")
    assert spans[0].get_attribute("title").endswith("ratio 0.5")


def test_tabs_work_by_keyboard(file_page):
    tab = file_page.one("#tab-curves")
    tab.send_keys(webdriver.Keys.ARROW_LEFT)
    assert file_page.one("#tab-settings").get_attribute("aria-selected") == "true"
    assert "n_grpo_steps" in file_page.text("#settings-table")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(file_page, scheme):
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    file_page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    file_page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for tab in ("curves", "answers", "settings"):
            file_page.one(f"#tab-{tab}").click()
            file_page.wait("document.documentElement.scrollWidth <= 390")
        back = file_page.one("body").value_of_css_property("background-color")
        assert (back == "rgba(255, 255, 255, 1)") is (scheme == "light")
    finally:
        file_page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_served_page_overlays_runs_and_follows_them(browser, tmp_path):
    runs = [make_run(tmp_path / name, reward=r, lr=r) for name, r in (("a", 0.1), ("b", 0.2))]
    with PageServer(runs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.driver.get(server.url)
            legends = browser.all(".panel")[0].text
            assert "a" in legends and "b" in legends
            browser.one("#tab-settings").click()
            browser.one("#differences").click()
            assert [row.text for row in browser.all("#settings-table tbody th")] == ["lr"]
            with (runs[1] / "metrics.jsonl").open("a") as file:
                line = {"step": 3, "grpo_step": 3, "elapsed_seconds": 30.0, "reward": 0.9}
                file.write(json.dumps(line) + "\n")
            browser.wait("document.getElementById('states').textContent.includes('step 3')")
        finally:
            server.shutdown()
            thread.join()
            browser.driver.get("about:blank")


def test_ten_thousand_answers_stay_few_elements(browser, tmp_path):
    page = write_page(make_run(tmp_path / "run", questions=10_000 // GROUP))
    browser.driver.get(page.as_uri())
    browser.open_answers()
    assert browser.text("#count").startswith("10000 of 10000 answers")
    browser.driver.execute_script("document.getElementById('questions').scrollTop = 1e9")
    browser.wait("document.getElementById('row-1249') !== null")
    assert len(browser.all(".row")) < 60
    browser.set("text", "700 + 700")
    assert browser.text("#count") == f"{GROUP} of 10000 answers, 1 of 1250 questions"
