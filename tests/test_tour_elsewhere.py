"""The tour on models that are not ours: it runs from the first cell to the last, and says what it cannot tell."""

import json

import pytest
from test_notebooks import NOTEBOOKS, prepared

from workbench import cli


@pytest.fixture(scope="module", params=["craftgpt", "qwen2", "gemma"])
def executed(request, tmp_path_factory):
    """The tour's text outputs on CraftGPT, which nobody here trained, and on random-initialised Qwen2 and Gemma."""
    if request.param == "craftgpt":
        folder = request.getfixturevalue("reference") / "models" / "craftgpt"
    else:
        folder = request.getfixturevalue("tiny_folder")(request.param)
    notebook = prepared(NOTEBOOKS / cli.TOUR)
    cli.substitute(notebook, r'MODEL = "[^"\n]*"', f"MODEL = {json.dumps(str(folder))}")
    cli.execute(notebook, tmp_path_factory.mktemp("tour"))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return outputs, "\n".join(str(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs)


@pytest.mark.notebook
def test_the_tour_runs_on_other_models(executed):
    outputs, told = executed
    assert not [o for o in outputs if o.output_type == "error"]
    assert "do not fit the context and are left out, uncut" in told
    assert sum(cli.PLOTLY in o.get("data", {}) for o in outputs) >= 6
    bars = [str(o["data"][cli.PLOTLY]) for o in outputs if cli.PLOTLY in o.get("data", {})]
    assert any("no judge" in figure for figure in bars), "CSR stays empty, with the reason"
    assert "p_reader" in told and "scrambled" not in told
