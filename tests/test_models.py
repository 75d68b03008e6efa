"""Loading: shared weights, one BOS, bridge against twin, and one clear sentence for whatever fails."""

import json
import shutil

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from tiny import BOS, FAMILIES, MORE, SHARED, make

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.models import load_model, residual, self_check

TEXTS = ["Should Mira sell the old house?", "I helped a friend."]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A tiny model's folder that a test may change."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "changed")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- one set of weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_bridge_and_twin_share_tensors_and_agree(tiny_model, family):
    model = tiny_model(family)
    assert model.agreement["logits"] <= 1e-5 and model.agreement["resid_post"] <= 1e-5
    theirs = {parameter.data_ptr() for parameter in model.bridge.parameters()}
    apart = [name for name, p in model.twin.named_parameters() if p.data_ptr() not in theirs]
    if family in SHARED:
        assert not apart
    else:  # the bridge splits the fused projection into tensors of its own
        assert all("attn" in name for name in apart), apart


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_is_a_plain_frozen_hugging_face_model(tiny_model, family):
    model = tiny_model(family)
    assert type(model.twin).__module__.startswith("transformers.")
    assert not any(type(module).__module__.startswith("transformer_lens") for module in model.twin.modules())
    assert not model.twin.training and not any(p.requires_grad for p in model.twin.parameters())
    assert model.twin.config._attn_implementation == "eager"  # as in the bridge
    assert (model.n_layers, model.d_model, model.context) == (3, 32, 128) and len(model.blocks) == 3
    assert model.neurons(1).weight.shape in {(32, 64), (128, 32)}  # GPT-2 keeps it transposed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_within_its_tolerance(tiny_folder, dtype):
    model = load_model(tiny_folder("qwen2"), dtype=dtype)
    assert model.dtype == getattr(torch, dtype) == next(model.twin.parameters()).dtype
    assert model.agreement["logits"] <= model.agreement["tolerance"] and dtype in model.reason


def test_a_twin_that_differs_is_refused_with_the_numbers(tiny_folder):
    model = load_model(tiny_folder("llama"))
    scale = 1 + 1e-3
    model.blocks[1].register_forward_hook(lambda _module, _inputs, output: residual(output) * scale)
    numbers = r"differ: logits by \d\.\de-0\d, resid_post by 1\.0e-03 \(relative\)\nAllowed: 1e-05"
    with pytest.raises(WorkbenchError, match=numbers):
        self_check(model)


def test_a_bridge_hook_that_never_fires_is_refused(tiny_folder, monkeypatch):
    model = load_model(tiny_folder("llama"))
    run = model.bridge.run_with_cache
    monkeypatch.setattr(model.bridge, "run_with_cache", lambda ids, names_filter: run(
        ids, names_filter=lambda hook: names_filter(hook) and "blocks.2." not in hook))
    with pytest.raises(WorkbenchError, match=r"resid_post by inf.*never fired: blocks\.2\.hook_resid_post"):
        self_check(model)


def test_nan_is_no_agreement(tiny_folder):
    model = load_model(tiny_folder("llama"))
    model.twin.get_input_embeddings().weight.data.fill_(float("nan"))  # shared: both give NaN
    with pytest.raises(WorkbenchError, match="logits by nan"):
        self_check(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_either_engine_speaks_alike_and_its_blocks_can_be_steered(tiny_folder, family):
    plain, bridged = (load_model(tiny_folder(family), engine=e) for e in ("huggingface", "transformer-lens"))
    assert plain.speaker is plain.twin and bridged.speaker is bridged.bridge.original_model
    ids, mask = plain.pad(plain.encode(TEXTS))
    shift = torch.linspace(-1, 1, plain.d_model)  # no constant: a layer norm would take it out again
    with torch.inference_mode():
        expected = plain.speaker(ids, attention_mask=mask, use_cache=True)
        got = bridged.speaker(ids, attention_mask=mask, use_cache=True)
        torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
        assert got.past_key_values.get_seq_length() == ids.shape[1]
        for block in (plain.blocks[1], bridged.bridge.blocks[1]):
            block.register_forward_hook(lambda _module, _inputs, output: residual(output) + shift)
        steered = [model.speaker(ids, attention_mask=mask).logits for model in (plain, bridged)]
    assert (steered[0] - expected.logits).abs().max() > 1e-2
    torch.testing.assert_close(steered[1], steered[0], rtol=0, atol=1e-5)


# -- before any training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_a_random_twin_shares_all_but_the_weights(tiny_model, family):
    model = tiny_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        twin = model.random_twin(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(6)
        again = load_model(**twin.source)
    assert again.fingerprint == twin.fingerprint != model.fingerprint, "the seed decides, and nothing else"
    ours, theirs = (dict(one.twin.named_parameters()) for one in (model, twin))
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}
    assert not [name for name, p in ours.items() if torch.equal(p, theirs[name])], "nothing of what it learnt is left"
    for name, p in theirs.items():
        if p.ndim == 1:  # norms and biases start at 0 or 1
            assert torch.unique(p).numel() == 1, name
        else:
            assert 0.05 < float(p.std()) < 0.2, f"{name}: near the configuration's initializer_range"
    for chat in (False, True):
        assert twin.encode(TEXTS, chat) == model.encode(TEXTS, chat)
    assert (twin.bos_id, twin.eos_ids, twin.pad_id, twin.context) == (
        model.bos_id, model.eos_ids, model.pad_id, model.context)  # fmt: skip
    assert twin.agreement["logits"] <= 1e-5 and twin.agreement["resid_post"] <= 1e-5
    assert twin.name == f"{family}, random weights 3" and twin.source["random_weights"] == 3
    acts = capture(twin, TEXTS)
    assert acts.shape == (3, 2, 32) and bool(np.isfinite(acts).all())
    assert acts.attrs["fingerprint"] == twin.fingerprint and not np.allclose(acts, capture(model, TEXTS))


def test_each_seed_has_its_own_random_twin(tiny_folder, tiny_model):
    model = tiny_model("llama")
    one, other = (model.random_twin(seed) for seed in (0, 1))
    assert len({model.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert other.random_twin(0).fingerprint == one.fingerprint, "a twin of a twin is a twin"
    half = load_model(tiny_folder("llama"), dtype="bfloat16", engine="transformer-lens").random_twin(1)
    assert half.dtype == torch.bfloat16 == next(half.twin.parameters()).dtype and half.engine == "transformer-lens"


# -- text and tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_one_bos_where_the_model_uses_one(tiny_model, family):
    model = tiny_model(family)
    bos, by_tokenizer, by_template = BOS[family]
    rows = model.encode(TEXTS) + model.encode(TEXTS, chat=True) + model.encode([f"{bos or ''}{TEXTS[0]}"])
    if by_tokenizer:
        assert all(row.count(1) == 1 and row[0] == 1 for row in rows)
        assert rows[0] == rows[-1] == model.tokenizer(TEXTS[0]).input_ids
    elif bos is None:
        assert model.bos_id is None and all(1 not in row for row in rows)
        assert rows[0] == model.tokenizer(TEXTS[0]).input_ids
    if by_tokenizer and by_template:  # the trap: tokenising the rendered text as it is doubles it
        assert model.tokenizer(model.render(TEXTS)[0]).input_ids[:2] == [1, 1]


def test_an_eos_that_the_tokenizer_appends_is_never_the_last_token_read(folder):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 1), ("<|end|>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    model = load_model(folder)
    assert model.tokenizer(TEXTS[0]).input_ids[-1] == 2  # the trap is set
    (row,) = model.encode(TEXTS[:1])
    assert row == model.tokenizer(TEXTS[0]).input_ids[:-1] and row[0] == 1


def test_the_instruction_stands_before_the_prompt_in_the_users_turn(tiny_model):
    model = tiny_model("llama")
    assert model.render(["Go?"], "Be bold.") == ["<s><|user|> Be bold. Go? <|end|><|assistant|>"]
    for chat in (True, False):
        assert model.encode(["Go?"], chat, "Be bold.") == model.encode(["Be bold. Go?"], chat)
    assert model.decode(model.encode(["Go?"], chat=True)[0]).split() == ["Go?"]


def test_without_chat_template_raw_text_is_read(folder):
    (folder / "chat_template.jinja").unlink()
    model = load_model(folder)
    assert not model.has_chat_template
    assert model.render(["Go?"], "Be bold.") == ["Be bold. Go?"]
    assert model.encode(TEXTS, chat=True) == model.encode(TEXTS)


def test_one_string_is_no_list_of_texts(tiny_model):
    with pytest.raises(WorkbenchError, match="one string"):
        tiny_model("llama").encode("Go?")


def test_padding_masks_every_filler(tiny_model):
    model = tiny_model("llama")
    left, right = (model.pad([[5, 6, 7], [8]], side=side) for side in ("left", "right"))
    assert left[0].tolist() == [[5, 6, 7], [0, 0, 8]] and left[1].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right[0].tolist() == [[5, 6, 7], [8, 0, 0]] and right[1].tolist() == [[1, 1, 1], [1, 0, 0]]
    with pytest.raises(WorkbenchError, match="'left', 'right'"):
        model.pad([[1]], side="both")


def test_ends_of_answers_come_from_everywhere_they_are_declared(folder):
    edit_json(folder / "generation_config.json", eos_token_id=[2, 5])
    edit_json(folder / "config.json", eos_token_id=7)
    assert load_model(folder).eos_ids == {2, 5, 7}


def test_lengths_are_told_never_cut(tiny_model):
    model = tiny_model("llama")
    long = "a b " * 100
    ids = model.encode([TEXTS[0], long])
    model.check_length(ids[:1], TEXTS[:1])
    with pytest.raises(WorkbenchError, match=rf"Text 1, 'a b .*\n.*{len(ids[1])} of 128 tokens"):
        model.check_length(ids, [TEXTS[0], long])
    with pytest.raises(WorkbenchError, match=rf"{len(ids[0]) + 125} of 128 tokens, 125 of them to come"):
        model.check_length(ids[:1], TEXTS[:1], room=125)
    with pytest.raises(WorkbenchError, match="no tokens"):
        model.check_length([[]], [""])


@pytest.mark.parametrize(
    ("layers", "message"),
    [([3], r"unknown: \[3\]\nAllowed: 0 to 2"), ([1, -1], r"unknown: \[-1\]"), ([], "no layer at all")],
)
def test_unknown_layers(tiny_model, layers, message):
    model = tiny_model("llama")
    assert model.check_layers(None) == [0, 1, 2] and model.check_layers(range(1, 3)) == [1, 2]
    with pytest.raises(WorkbenchError, match=message):
        model.check_layers(layers)


def test_instructions_belong_to_the_world(tiny_model, folder):
    model = tiny_model("llama")
    assert "You have low level of tradition. Tradition means respect, " in model.instruct("tradition", "low")
    edit_json(folder / "config.json", workbench_world="scrambled")
    embedded = load_model(folder)
    assert (model.world, embedded.world) == (None, "scrambled")
    assert embedded.instruct("tradition") == "You have a high level of tradition."
    with pytest.raises(WorkbenchError, match="'high', 'low'"):
        model.instruct("tradition", "medium")
    with pytest.raises(WorkbenchError, match="tradition"):
        model.instruct("traditon")


def test_embedded_names_lead_to_the_worlds_folder(tiny_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("workbench.checkpoints.data_path", lambda *parts: asked.append(parts) or tiny_folder("llama"))
    model = load_model("embedded:confirm")
    assert asked == [("embedded", "confirm")]
    assert (model.name, model.world, model.provenance["world"]) == ("embedded:confirm", "confirm", "confirm")


# -- identity ------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_weights(tiny_folder, folder, monkeypatch):
    model = load_model(tiny_folder("llama"))
    assert model.fingerprint == load_model(folder).fingerprint and model.fingerprint.startswith("sha256:")
    assert model.fingerprint != load_model(folder, dtype="float16").fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    changed = load_model(folder)
    assert model.fingerprint != changed.fingerprint
    monkeypatch.setattr("workbench.models.HASH_WHOLE", 0)
    sampled = load_model(folder).fingerprint
    assert sampled.startswith("sha256-sampled:") and sampled == load_model(folder).fingerprint


def test_provenance_is_flat_and_holds_no_path(tiny_model):
    record = tiny_model("llama").provenance
    assert record["model"] == "llama" and record["weights"] == "raw" and record["dtype"] == "float32"
    assert all(isinstance(entry, str) and "/" not in entry for entry in record.values())
    assert {"torch", "transformers", "transformer-lens", "fingerprint", "template", "revision"} <= set(record)


# -- device and dtype ----------------------------------------------------------------------------------------


def test_device_and_dtype_come_with_their_reason(tiny_model, tiny_folder):
    assert "float32 (exact; 0.0M parameters)" in tiny_model("llama").reason
    asked = load_model(tiny_folder("llama"), "cpu", torch.bfloat16)
    assert "cpu (as asked), bfloat16 (as asked)" in repr(asked)
    with pytest.raises(WorkbenchError, match="dtype 'int8'.*\nAllowed: float32, float16, bfloat16"):
        load_model(tiny_folder("llama"), dtype="int8")
    with pytest.raises(WorkbenchError, match="Device 'toaster'"):
        load_model(tiny_folder("llama"), device="toaster")
    with pytest.raises(WorkbenchError, match="Engine 'vllm'.*\nAllowed: 'huggingface', 'transformer-lens'"):
        load_model(tiny_folder("llama"), engine="vllm")


def test_large_models_keep_the_checkpoints_own_dtype(folder, monkeypatch):
    from workbench import checkpoints

    edit_json(folder / "config.json", dtype="bfloat16")
    with (folder / "model-2.safetensors").open("wb") as sparse:
        sparse.truncate(9 * 10**9)  # takes no room on the disk
    assert checkpoints.choose(folder, "cpu", None)[1:] == (
        torch.bfloat16,
        "cpu (as asked), bfloat16 (the checkpoint's own; float32 only up to 4G parameters)",
    )


# -- one clear sentence each ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:square", "embedded:circle, embedded:scrambled, embedded:confirm"),
        ("./nowhere", "'./nowhere' was asked for.\nFound: no such folder\nAllowed: a folder with config"),
        ("nobody/nothing", "'nobody/nothing' was asked for.\nFound: no local folder of that name, and no"),
        ("not a name", "no public model and no local folder of that name"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(WorkbenchError) as caught:
        load_model(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (hub.GatedRepoError, "a licence to accept first"),
        (hub.RepositoryNotFoundError, "no public model and no local folder of that name"),
        (hub.RevisionNotFoundError, "the model, but no revision 'v9' of it"),
    ],
)
def test_what_hugging_face_answers(monkeypatch, problem, message):
    def refuse(*_args, **_settings):
        raise problem("no", response=httpx.Response(404, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(WorkbenchError, match=message):
        load_model("owner/name", revision="v9")


def test_a_hugging_face_name_keeps_its_commit(tiny_folder, tmp_path, monkeypatch):
    commit = shutil.copytree(tiny_folder("llama"), tmp_path / "0123abc")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_settings: str(commit))
    model = load_model("owner/name")
    assert (model.name, model.revision, model.provenance["revision"]) == ("owner/name", "0123abc", "0123abc")
    with pytest.raises(WorkbenchError, match="revision 'main', which only Hugging Face names have"):
        load_model(commit, revision="main")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "no config.json in its folder"),
        ("model.safetensors", "no model.safetensors in its folder"),
        ("tokenizer.json", "The tokenizer of 'changed' was asked for"),
    ],
)
def test_folders_that_lack_something(folder, removed, message):
    (folder / removed).unlink()
    with pytest.raises(WorkbenchError, match=message):
        load_model(folder)


def test_pickled_weights_are_refused_and_the_command_converts_them(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(WorkbenchError, match="only pytorch_model.bin, which can run code") as caught:
        load_model(folder)
    command = str(caught.value).split('convert it once: python -c "')[1].removesuffix('"')
    exec(command, {})
    assert load_model(f"{folder}-safetensors").n_layers == 3


@pytest.mark.parametrize("lost", [True, False])
def test_weights_are_never_made_up(folder, lost):
    weights, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if lost:
        del weights[name]
    else:
        weights[name] = weights[name][:8].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkbenchError, match=f"1 weights missing or misshapen: {name}"):
        load_model(folder)


def test_a_torn_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkbenchError, match="weights are whole and match"):
        load_model(folder)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "absent.safetensors"])
def test_shards_stay_in_their_folder(folder, shard):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WorkbenchError, match=f"names {shard}, not in the folder"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WorkbenchError, match="Allowed: a model.safetensors.index.json that names its shards"):
        load_model(folder)


def test_code_in_a_models_folder_is_never_run(folder):
    mark = folder / "it-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_json(folder / "config.json", auto_map=own)
    load_model(folder)  # an architecture that transformers knows: its own code is passed over
    edit_json(folder / "config.json", auto_map=own, model_type="evil")
    with pytest.raises(WorkbenchError, match="contains custom code.*\n.*without code of its own"):
        load_model(folder)
    assert not mark.exists()


def test_an_architecture_nobody_knows(folder):
    edit_json(folder / "config.json", model_type="unheard-of")
    with pytest.raises(WorkbenchError, match="'changed' was asked for"):
        load_model(folder)


# -- a model from outside ------------------------------------------------------------------------------------


def test_craftgpt_loads_renders_and_speaks(craftgpt):
    assert (craftgpt.n_layers, craftgpt.d_model, craftgpt.context) == (6, 240, 64)
    assert craftgpt.render(["hello"]) == [" [inst] hello [/inst]"]
    (row,) = craftgpt.encode(["how do i make a sword"], chat=True)
    assert row[0] == 0 and row.count(0) == 1 and row[-1] == 1 and craftgpt.eos_ids == {0}
    ids, mask = craftgpt.pad([row])
    said = craftgpt.twin.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert len(craftgpt.decode(said[0, len(row) :].tolist()).split()) >= 3


def test_seeds_make_different_tiny_models(tmp_path):
    one, other = (load_model(make(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert one.fingerprint != other.fingerprint


def test_a_device_map_reaches_the_model(tiny_folder):
    """All parts on the CPU, the only device here: what is loaded is the same model, hooks of accelerate and all."""
    plain = load_model(tiny_folder("llama"))
    layers = [f"model.layers.{i}" for i in range(3)]
    parts = ["model.embed_tokens", *layers, "model.norm", "model.rotary_emb", "lm_head"]
    for device_map in ({"": "cpu"}, dict.fromkeys(parts, "cpu")):
        spread = load_model(tiny_folder("llama"), device_map=device_map)
        assert spread.reason.startswith("spread over cpu") and spread.fingerprint == plain.fingerprint
        assert spread.device == plain.device
        ids = torch.tensor([[1, 20, 30]])
        assert torch.equal(spread.twin(ids).logits, plain.twin(ids).logits)
        assert load_model(**spread.source).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": {"": "disk"}}, "device_map={'': 'disk'}.*\nFound: .*disk"),
        ({"device_map": {"": "cpu"}, "device": "cpu"}, "mutually exclusive"),
        ({"n_devices": 2}, "n_devices=2"),
    ],
)
def test_what_cannot_be_spread(tiny_folder, settings, message):
    if torch.cuda.device_count() > 1:
        pytest.skip("two GPUs: n_devices=2 can be met")
    with pytest.raises(WorkbenchError, match=message):
        load_model(tiny_folder("llama"), **settings)
