# ruff: noqa: F811
"""SCAV: the closed form at the last token of every step."""

from contextlib import ExitStack
from math import log

import numpy as np
import pandas as pd
import pytest
import torch
from test_contracts import PROMPTS, VALUE, gate, probes  # noqa: F401

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.generate import generate
from workbench.models import residual
from workbench.steering import SCAV, ConVA, Intervention


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_closed_form_at_the_last_token_of_each_step(family, tiny_model, probes):
    """By hooks of one's own that edit the last position of every cached step, layer after layer."""
    model, fitted = tiny_model(family), probes(family)
    ids, answer, expected = model.encode(PROMPTS[1:2], chat=True), [], []

    def hook(layer):
        w = torch.from_numpy(fitted.weight.sel(value=VALUE, layer=layer).values).float()
        b = float(fitted.bias.sel(value=VALUE, layer=layer))

        def edit(_module, _inputs, output):
            hidden = residual(output).clone()
            eps = max(0.0, (log(99) - float(hidden[0, -1] @ w) - b) / float(w.norm()))
            hidden[0, -1] += eps * w / w.norm()
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return edit

    with ExitStack() as hooks, torch.no_grad():
        for layer, block in enumerate(model.blocks):
            hooks.callback(block.register_forward_hook(hook(layer)).remove)
        step, cache = torch.tensor(ids), None
        for _ in range(5):
            out = model.twin(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            expected.append(out.logits[0, -1])
            step = expected[-1].argmax()[None, None]
            answer.append(int(step))
    steer = SCAV(fitted, VALUE, target=0.99)
    with steer.on(model, prompt_lengths=[len(ids[0])]), torch.no_grad():
        ours = model.twin(torch.tensor([ids[0] + answer[:-1]])).logits[0, len(ids[0]) - 1 :]
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        plain = model.twin(torch.tensor([ids[0] + answer[:-1]])).logits[0, len(ids[0]) - 1 :]
    assert float((ours - plain).abs().max()) > 0.1, "else nothing is compared"


def test_it_is_conva_at_each_token_of_every_layer(tiny_model, probes):
    model = tiny_model()
    scav = SCAV(probes(), VALUE, target=0.99)
    conva = ConVA(probes(), VALUE, target=0.99, layers=[0, 1, 2], scope="token")
    assert scav.layers == (0, 1, 2) and scav.gate is None and scav.scope == "token"
    (text, trace), (text2, trace2) = (generate(model, PROMPTS, steer=steer, max_new_tokens=6, return_trace=True)
                                      for steer in (scav, conva))  # fmt: skip
    assert text == text2
    pd.testing.assert_frame_equal(trace, trace2)
    np.testing.assert_allclose(trace["p_after"], np.maximum(trace["p_before"], 0.99), atol=1e-5)


def test_its_settings(tiny_model, probes, gate, tmp_path):
    assert wb.SCAV is SCAV and Intervention.registry["SCAV"] is SCAV
    with pytest.raises(WorkbenchError, match="SCAV with scope 'all' was asked for.\nAllowed: 'token'"):
        SCAV(probes(), VALUE, scope="all")
    with pytest.raises(WorkbenchError, match="SCAV was asked for.*\n.*mean_difference"):
        SCAV(probes("llama", "mean_difference"), VALUE)
    down = SCAV(probes(), VALUE, target=0.01, direction="down", layers=[1], gate=gate())
    again = Intervention.load(down.save(tmp_path / "steer.safetensors"), tiny_model())
    assert type(again) is SCAV and repr(again) == repr(down) and repr(down).startswith("SCAV(security, target=0.01")
