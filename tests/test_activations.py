"""Capture: the last real token, TransformerLens' own numbers, whatever the batch, and clear refusals."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import FAMILIES, MORE

from workbench.activations import HOOKS, batches, capture
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


def by_forward_hooks(model, ids, side):
    """(layer, text, d) of the last real token by plain hooks on the decoder blocks, as other libraries would pad."""
    input_ids, mask = model.pad(ids, side=side)
    seen = []
    handles = [b.register_forward_hook(lambda _m, _i, output: seen.append(residual(output))) for b in model.blocks]
    with torch.inference_mode():
        places = (mask.cumsum(1) - 1).clamp_min(0)
        model.twin(input_ids, attention_mask=mask, position_ids=places, use_cache=False)
    for handle in handles:
        handle.remove()
    last = [-1] * len(ids) if side == "left" else [len(row) - 1 for row in ids]
    return torch.stack([block[range(len(ids)), last] for block in seen]).numpy()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_capture_equals_forward_hooks_on_the_blocks(tiny_model, family, size, side):
    model = tiny_model(family)
    texts = [text[: 5 + 7 * i] for i in range(4) for text in TEXTS]
    ids = model.encode(texts)
    acts = capture(model, texts, batch_tokens=size * max(map(len, ids)))
    batches = [ids[i : i + size] for i in range(0, len(ids), size)]
    expected = np.concatenate([by_forward_hooks(model, batch, side) for batch in batches], axis=1)
    assert relative(acts.values, expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES + MORE)
@pytest.mark.parametrize("hook", HOOKS)
def test_both_engines_read_the_same(tiny_model, family, hook):
    model = tiny_model(family)
    if hook == "resid_mid" and family == "phi":
        with pytest.raises(WorkbenchError, match="side by side.*\nAllowed: resid_pre or resid_post"):
            capture(model, TEXTS, hook=hook)
        return
    for layers in (None, [1]):
        ours, theirs = (capture(model, TEXTS, layers, hook, engine=e) for e in ("huggingface", "transformer-lens"))
        assert relative(ours.values, theirs.values) < 1e-5


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


@pytest.mark.parametrize("engine", ["huggingface", "transformer-lens"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_token_and_any_token(tiny_model, family, engine):
    model = tiny_model(family)
    ids = model.encode(TEXTS)
    every = capture(model, TEXTS, position="all", engine=engine, labels={"value": list("abcd")})
    assert every.dims == ("layer", "token", "d_model") and every.sizes["token"] == sum(map(len, ids))
    for text, content in enumerate(TEXTS):
        own = every[:, every.text.values == text]
        np.testing.assert_allclose(own, from_the_bridge(model, content, "resid_post"), atol=1e-5)
        assert own.token_id.values.tolist() == ids[text] and own.position.values.tolist() == list(range(len(ids[text])))
        assert set(own.value.values) == {"abcd"[text]}
    some = capture(model, TEXTS, position=[-1, 0], engine=engine)
    assert some.dims == ("layer", "text", "position", "d_model") and some.position.values.tolist() == [-1, 0]
    np.testing.assert_array_equal(some.sel(position=-1), capture(model, TEXTS, engine=engine))
    np.testing.assert_allclose(some.sel(position=0), every[:, every.position.values == 0], atol=1e-5)
    own = np.array([[len(row) - 2, 1] for row in ids])
    given = capture(model, TEXTS, position=own, engine=engine)
    np.testing.assert_array_equal(given.token_position, own)
    np.testing.assert_allclose(given[:, :, 1], every[:, every.position.values == 1], atol=1e-5)
    np.testing.assert_array_equal(given[:, :, 0], capture(model, TEXTS, position=[-2], engine=engine)[:, :, 0])


def test_labels_travel(tiny_model):
    acts = capture(tiny_model("llama"), TEXTS, labels={"value": list("abcd"), "held_out": [True, False, True, True]})
    assert acts[:, acts.value.values == "b"].text.values.tolist() == [1]
    assert acts.held_out.dims == ("text",) and acts.held_out.dtype == bool


def test_a_batch_that_does_not_fit_is_halved_and_said(tiny_folder):
    model, said, sizes = load_model(tiny_folder("llama")), [], []

    def small_memory(_module, args, named):
        sizes.append(named.get("input_ids", args[0] if args else None).numel())
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = capture(model, TEXTS * 5)
    model.twin.model.register_forward_pre_hook(small_memory, with_kwargs=True)
    acts = capture(model, TEXTS * 5, say=said.append)
    assert relative(acts.values, expected.values) < 1e-5
    assert len(said) == sum(size > 100 for size in sizes) > 0 and all("Out of memory at" in line for line in said)
    with pytest.raises(WorkbenchError, match="A text of 1[12][0-9] tokens.*\nFound: not enough memory for it alone"):
        capture(model, ["no " * 40], say=said.append)


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_results_keep_their_order_and_do_not_depend_on_the_batch(tiny_model, batch_tokens):
    model = tiny_model("gpt2")
    acts = capture(model, TEXTS * 2, layers=[2, 0], batch_tokens=batch_tokens)
    assert acts.layer.values.tolist() == [2, 0]
    alone = [capture(model, [text], layers=[2, 0]).values[:, 0] for text in TEXTS] * 2
    np.testing.assert_allclose(acts.values, np.stack(alone, axis=1), atol=1e-5)


def test_batches_hold_the_token_budget():
    lengths = [5, 40, 7, 7, 3, 21]
    made = batches(lengths, 21)
    assert sorted(row for rows in made for row in rows) == list(range(6))
    assert made[0] == [1]  # longer than the budget: goes alone
    assert all(len(rows) * max(lengths[row] for row in rows) <= 21 for rows in made[1:])
    assert len(made) < len(lengths)


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
        ({"hook": "resid"}, "Hook 'resid'.*\nAllowed: 'resid_pre', 'resid_mid', 'resid_post', 'mlp.hook_post'"),
        ({"position": "first"}, "position 'first'.*\nAllowed: 'last', 'mean', 'all', ints, or an array"),
        ({"position": []}, "shape \\(0,\\), for 4 texts\nAllowed: a list of ints"),
        ({"position": [0.5]}, "an array of float64"),
        ({"position": [[1], [2]]}, "shape \\(2, 1\\), for 4 texts"),
        ({"position": [0, 9]}, "Token 9 of text 0, 'Should Mira.*\nFound: 8 tokens\nAllowed: -8 to 7"),
        ({"labels": {"value": ["a"]}}, "Label 'value'.*\nFound: shape \\(1,\\)\nAllowed: \\(4,\\)"),
        ({"labels": {"layer": [1, 2, 3, 4]}}, "called 'layer'.*\nFound: a name that the array needs"),
        ({"engine": "vllm"}, "Engine 'vllm'.*\nAllowed: 'huggingface', 'transformer-lens', 'ray'"),
        ({"engine": "ray"}, "no store for its workers"),
        ({"store_dtype": "int8"}, "'int8'.*\nAllowed: 'float32', 'float16'"),
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
