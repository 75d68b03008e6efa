"""Capture: the last real token, TransformerLens' own numbers, whatever the batch, and clear refusals."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import FAMILIES

from workbench.activations import HOOKS, _batches, capture
from workbench.errors import WorkbenchError
from workbench.models import load_model, residual

TEXTS = [
    "Should Mira sell the old house?",
    "Yes.",
    "He wants to win the race and to lead the team, and they protect the forest.",
    "I helped a friend move today.",
]


def from_the_bridge(model, text, hook, chat=False):
    """(layer, position, d) by TransformerLens itself, one text alone."""
    name = hook if "." in hook else f"hook_{hook}"
    ids = torch.tensor(model.encode([text], chat=chat))
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(ids)
    return torch.stack([cache[f"blocks.{layer}.{name}"][0] for layer in range(model.n_layers)]).numpy()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_capture_equals_transformer_lens_at_the_last_real_token(tiny_model, family, hook):
    model = tiny_model(family)
    acts = capture(model, TEXTS, hook=hook)  # one batch: every row but one is padded
    assert acts.dtype == np.float32 and acts.shape[:2] == (3, 4)
    for row, text in enumerate(TEXTS):
        expected = from_the_bridge(model, text, hook)[:, -1]
        np.testing.assert_allclose(acts.values[:, row], expected, atol=1e-5, err_msg=text)


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_post_of_a_block_is_resid_pre_of_the_next(tiny_model, family):
    """The off-by-one trap: hidden_states[0] is the embedding."""
    pre, post = (capture(tiny_model(family), TEXTS, hook=hook) for hook in ("resid_pre", "resid_post"))
    np.testing.assert_array_equal(post.values[:-1], pre.values[1:])
    assert np.abs(post.values - pre.values).max() > 0.1


def test_chat_reads_the_token_that_produces_the_answer(tiny_model):
    model = tiny_model("llama")
    acts = capture(model, TEXTS, chat=True)
    assert model.encode(TEXTS, chat=True)[0][-1] == model.tokenizer.convert_tokens_to_ids("<|assistant|>")
    np.testing.assert_allclose(
        acts.values[:, 0], from_the_bridge(model, TEXTS[0], "resid_post", chat=True)[:, -1], atol=1e-5)
    assert acts.attrs["chat"] == 1 and capture(model, TEXTS).attrs["chat"] == 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_mean_leaves_bos_and_padding_out(tiny_model, family):
    model = tiny_model(family)
    acts = capture(model, TEXTS, position="mean")
    for row, text in enumerate(TEXTS):
        tokens = from_the_bridge(model, text, "resid_post")[:, 0 if model.bos_id is None else 1 :]
        np.testing.assert_allclose(acts.values[:, row], tokens.mean(axis=1), atol=1e-5)


def test_mean_of_nothing_but_a_bos_is_that_bos(tiny_model):
    model = tiny_model("llama")
    mean, last = capture(model, ["", *TEXTS], position="mean"), capture(model, [""])
    np.testing.assert_allclose(mean.values[:, 0], last.values[:, 0], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_results_keep_their_order_and_do_not_depend_on_the_batch(tiny_model, batch_tokens):
    model = tiny_model("gpt2")
    acts = capture(model, TEXTS * 2, layers=[2, 0], batch_tokens=batch_tokens)
    assert acts.layer.values.tolist() == [2, 0]
    alone = [capture(model, [text], layers=[2, 0]).values[:, 0] for text in TEXTS] * 2
    np.testing.assert_allclose(acts.values, np.stack(alone, axis=1), atol=1e-5)


def test_batches_hold_the_token_budget():
    lengths = [5, 40, 7, 7, 3, 21]
    batches = _batches(lengths, 21)
    assert sorted(row for rows in batches for row in rows) == list(range(6))
    assert batches[0] == [1]  # longer than the budget: goes alone
    assert all(len(rows) * max(lengths[row] for row in rows) <= 21 for rows in batches[1:])
    assert len(batches) < len(lengths)


def test_the_forward_pass_ends_with_the_last_wanted_layer(tiny_folder):
    model, ran = load_model(tiny_folder("llama")), []
    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    model.twin.lm_head.register_forward_pre_hook(lambda *_: ran.append("unembedding"))
    capture(model, TEXTS[:1], layers=[1])
    assert ran == [0, 1]
    ran.clear()
    capture(model, TEXTS[:1], hook="mlp.hook_post")
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("hook", HOOKS)
def test_no_hook_is_left_even_after_an_error(tiny_folder, hook):
    model = load_model(tiny_folder("llama"))
    ids = torch.tensor(model.encode(TEXTS[:1]))
    before = model.twin(ids).logits
    capture(model, TEXTS, hook=hook)
    model.blocks[2].register_forward_pre_hook(fail := lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture(model, TEXTS, hook=hook)
    modules = list(model.twin.modules())
    left = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert left == [fail]
    model.blocks[2]._forward_pre_hooks.clear()
    assert torch.equal(model.twin(ids).logits, before)


def test_the_array_is_labelled_and_knows_where_it_comes_from(tiny_model):
    model = tiny_model("llama")
    acts = capture(model, TEXTS, layers=[1, 2])
    assert isinstance(acts, xr.DataArray) and acts.dims == ("layer", "text", "d_model")
    assert acts.sel(layer=2, text=3).shape == (32,)
    assert capture(model, TEXTS, hook="mlp.hook_post").dims == ("layer", "text", "neuron")
    expected = {**model.provenance, "hook": "resid_post", "position": "last", "chat": 0}
    assert acts.attrs == expected


def test_half_precision_models_give_float32(tiny_folder):
    acts = capture(load_model(tiny_folder("llama"), dtype="bfloat16"), TEXTS)
    assert acts.dtype == np.float32 and acts.attrs["dtype"] == "bfloat16"


def test_a_steered_model_is_captured_as_steered(tiny_folder):
    model = load_model(tiny_folder("llama"))
    plain = capture(model, TEXTS)
    model.blocks[1].register_forward_hook(lambda _module, _inputs, output: residual(output) + 1)
    steered = capture(model, TEXTS)
    np.testing.assert_array_equal(steered[0], plain[0])
    np.testing.assert_allclose(steered[1], plain[1] + 1, atol=1e-5)


def test_progress_counts_texts(tiny_model, capsys):
    capture(tiny_model("llama"), TEXTS)
    assert capsys.readouterr().err == ""
    capture(tiny_model("llama"), TEXTS, progress=True)
    assert "capture resid_post: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": []}, "no texts"),
        ({"texts": "Yes."}, "one string"),
        ({"layers": [0, 3]}, r"unknown: \[3\]\nAllowed: 0 to 2"),
        ({"layers": []}, "no layer at all"),
        ({"hook": "resid_mid"}, "Hook 'resid_mid'.*\nAllowed: 'resid_pre', 'resid_post', 'mlp.hook_post'"),
        ({"position": "first"}, "position 'first'.*\nAllowed: 'last', 'mean'"),
        ({"texts": ["Yes.", "no " * 200]}, r"Text 1, .*\nFound: \d{3} of 128 tokens\n.*nothing is cut"),
    ],
)
def test_what_cannot_be_captured(tiny_model, settings, message):
    with pytest.raises(WorkbenchError, match=message):
        capture(tiny_model("llama"), **{"texts": TEXTS, **settings})


def test_nothing_to_read_is_told(tiny_model):
    with pytest.raises(WorkbenchError, match="Text 1, '', was to be read.\nFound: no tokens"):
        capture(tiny_model("qwen2"), ["Yes.", ""])  # no BOS either


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_where_they_are(tiny_folder, broken):
    model = load_model(tiny_folder("llama"))

    def break_short_rows(_module, _inputs, output):
        output = residual(output).clone()
        output[2:, :, 5] = broken
        return output

    model.blocks[1].register_forward_hook(break_short_rows)
    with pytest.raises(WorkbenchError, match=r"inf in 2, first at layer 1 in text 1: 'Yes\.'\n.*weights"):
        capture(model, TEXTS)


def test_a_hook_that_never_fires_is_told(tiny_folder, monkeypatch):
    model = load_model(tiny_folder("llama"))
    monkeypatch.setattr(model, "neurons", lambda layer: torch.nn.Linear(1, 1))
    with pytest.raises(WorkbenchError, match=r"mlp\.hook_post of layers \[0, 1, 2\].*\nFound: silent hooks"):
        capture(model, TEXTS, hook="mlp.hook_post")


def test_craftgpt(craftgpt):
    acts = capture(craftgpt, ["hello", "how do i make a sword"], chat=True)
    assert acts.shape == (6, 2, 240)
    expected = from_the_bridge(craftgpt, "hello", "resid_post", chat=True)[:, -1]
    np.testing.assert_allclose(acts.values[:, 0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WorkbenchError, match=r"\d+ of 64 tokens"):
        capture(craftgpt, ["a sword and a shield " * 20])
