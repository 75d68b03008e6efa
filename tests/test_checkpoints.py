"""What is fetched of a Hugging Face name: enough for every tokenizer, and nothing that can run."""

import pytest

from workbench.checkpoints import find

KEPT = ["config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.model",
        "spm.model", "spiece.model", "sentencepiece.bpe.model"]  # fmt: skip
LEFT = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "training_args.bin", "optimizer.pt", "model.pt",
        "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack", "model.onnx", "rust_model.ot", "model.ckpt",
        "tokenizer.pkl", "tokenizer.bin", "tokenizer.pickle", "tokenizer.py", "modeling_custom.py", "model.pkl",
        "adapter_model.bin", "onnx/model.safetensors", "original/tokenizer.model", "1_Pooling/config.json"]  # fmt: skip


@pytest.mark.parametrize("name", KEPT + LEFT)
def test_only_what_is_needed_and_safe_is_fetched(name, monkeypatch, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    def fetch(_name, *, allow_patterns, ignore_patterns, revision):
        kept = filter_repo_objects([name], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert list(kept) == [name] * (name in KEPT)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert find("owner/name", None)[0] == tmp_path
