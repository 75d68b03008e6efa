"""`workbench evaluate CONFIG.toml`: what a file may say, and the whole way on models made here and by others."""

import re

import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.evaluation.config import read_config, read_judge, run_config
from workbench.evaluation.judges import ExactJudge
from workbench.evaluation.lineup import ENTRIES, Lineup, matched
from workbench.evaluation.tuning import Tuning

SMALL = """
model = "embedded:circle"
store = "kept"
methods = ["Base", "CAA", "ConVA", "ConVA, no gate", "ConVA at CAA", "random direction"]
values = ["power", "benevolence"]
layers = [[3]]
C = 1e-5
calibration = 6
limit = 5
seeds = [0]
unrelated = 7
hard = 4
settings.CAA = [{ layers = [3], strength = 0.2 }, { layers = [3], strength = 0.4 }]
settings.ConVA = [{ layers = [3], target = 0.6 }, { layers = [3], target = 0.75 }]
"""


def config(tmp_path, text):
    path = tmp_path / "evaluation.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text, told",
    [
        ("model = 3", "no model and no store"),
        ('model = "m"\nstore = "s"\nmetods = []', "unknown keys metods.*Did you mean methods"),
        ('model = "m"\nstore = "s"\nmethods = ["Conva"]', "the method 'Conva'.*Allowed: Base, ICA"),
        ('model = "m"\nstore = "s"\nmethods = ["CAA at Nothing"]', "the method 'CAA at Nothing'"),
        ('model = "m"\nstore = "s"\nvalues = ["money"]', "money"),
        ("model = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, told):
    with pytest.raises(WorkbenchError) as error:
        read_config(config(tmp_path, text))
    assert re.search(told, str(error.value), re.DOTALL), error.value


def test_a_missing_file_and_an_unknown_judge_are_told(tmp_path):
    with pytest.raises(WorkbenchError, match="nothing.toml"):
        read_config(tmp_path / "nothing.toml")
    with pytest.raises(WorkbenchError, match="'oracle'.*\n.*'exact', 'none', 'llm', 'local'"):
        read_judge({"by": "oracle"}, tmp_path, tmp_path)
    with pytest.raises(WorkbenchError, match="'llm'.*\n.*speed"):
        given = {"endpoint": "http://localhost:1/v1", "model": "m", "speed": 3}
        read_judge({"by": "llm", **given}, tmp_path, tmp_path)
    judge = read_judge({"by": "llm", "endpoint": "http://localhost:1/v1", "model": "m"}, tmp_path, tmp_path)
    assert judge is not None and judge.name == "m"


def test_the_command_does_the_whole_and_a_second_call_asks_nothing_new(tmp_path):
    path = config(tmp_path, SMALL)
    done = CliRunner().invoke(app, ["evaluate", str(path), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "ConVA at CAA" in done.output and "report.html" in done.output
    kept = tmp_path / "kept"
    files = {file.name for file in kept.iterdir()}
    assert {"answers.parquet", "manifest.json", "report.html", "table.csv", "table.tex"} <= files
    result = wb.open_evaluation(kept)
    chosen = {name: curve.query("chosen").set_index("value")["setting"] for name, curve in result.tuning.items()}
    assert set(chosen) == {"CAA", "ConVA"}, "ablations and controls follow, and are not tuned"
    methods = result.provenance["methods"]
    for value in ("power", "benevolence"):
        target = eval(chosen["ConVA"][value])["target"]  # noqa: S307, of this test's own settings
        assert f"target={target}" in methods["ConVA"][value] and f"target={target}" in methods["ConVA, no gate"][value]
        assert "gate=None" in methods["ConVA, no gate"][value] and "gate=None" not in methods["ConVA"][value]
    parts = {file: file.stat().st_mtime_ns for file in (kept / "parts").iterdir()}
    again = run_config(read_config(path), progress=False)
    assert {file: file.stat().st_mtime_ns for file in (kept / "parts").iterdir()} == parts
    pd.testing.assert_frame_equal(again.table(), result.table())


def test_keys_are_shown_with_all_methods():
    shown = CliRunner().invoke(app, ["evaluate", "--keys"])
    assert shown.exit_code == 0 and all(name in shown.output for name in (*ENTRIES, "judged_values"))


def test_on_a_model_by_others_the_pipeline_runs_with_its_questions_and_a_judge(craftgpt, tmp_path):
    """Whatever the figures: the judge here only looks for words."""

    class Words(ExactJudge):
        name = "words"

        def control(self, answer, value):
            return float(value[0] in answer)

        def fluent(self, answer):
            return bool(answer.strip())

    settings = {"ConVA": [{"layers": [3], "target": 0.9}], "CAA": [{"layers": [3], "strength": 1.0}],
                "NeVA": [{"target": 0.7}]}  # fmt: skip
    methods, values = ["Base", "CAA", "ConVA", "NeVA"], [*wb.VALUES[:2], "security"]
    lineup = Lineup(craftgpt, "natural", [[3]], [[2, 3, 4]], values=values, room=8, share=0.02, settings=settings)
    result = wb.study(craftgpt, lineup.methods(methods, {}), lineup.questions, Words(), limit=4, negative=True,
                      hard=lineup.other_prompts(True, 4), max_new_tokens=8, store=tmp_path)  # fmt: skip
    table = result.table()
    assert table["csr"].notna().any() and set(table["method"]) == {*methods} - {"NeVA"}
    assert (result.pick(prompt="negative")["note"] != "").any(), "negative prompts that do not fit are said, not cut"
    assert f"NeVA cannot steer {', '.join(values)}" in result.missing, "no neuron tells texts apart: said, not hidden"
    assert result.report(tmp_path / "report.html").is_file()


def test_an_equal_csr_is_looked_for_on_calibration_questions():
    settings = [{"strength": s} for s in (1, 2, 3)]

    def curve(csr, chosen):
        return pd.DataFrame({"value": "power", "setting": ["Base", *map(repr, settings)], "csr": [0.0, *csr],
                             "chosen": [False, *(i == chosen for i in range(3))]})  # fmt: skip

    other = Tuning({"power": settings[2]}, curve([0.1, 0.2, 0.4], 2))
    assert matched(Tuning({}, curve([0.3, 0.45, 0.9], 2)), other, "power", settings) == {"strength": 2}
    assert matched(Tuning({}, curve([0.5, 0.5, 0.9], 2)), other, "power", settings) == {"strength": 1}, "the weakest"
