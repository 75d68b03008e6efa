"""Tiny random-initialised models of real architectures, written as ordinary Hugging Face folders on the spot.

Their tokenizers and templates differ as the real ones do in where the BOS comes from.
"""

import string
from pathlib import Path

import torch

ASCII = string.ascii_letters + string.digits + ".,:;?!'()<>|-"
SENTENCES = (
    "Should Mira sell the old house or start a bakery? She values her family and the old customs. "
    "I helped a friend move today. You have a high level of tradition. What is two and three? "
    "He wants to win the race and to lead the team. They protect the forest and all who live near it."
)
TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# family: (BOS token, does the tokenizer write it, does the template write it)
BOS = {
    "llama": ("<s>", True, True),
    "qwen2": (None, False, False),
    "mistral": ("<s>", True, True),
    "gemma": ("<bos>", True, True),
    "gpt2": ("<|end|>", False, False),
    "phi3": ("<s>", True, False),
    "gemma2": ("<bos>", True, True),
    "gemma3_text": ("<bos>", True, True),
    "phi": ("<|end|>", False, False),
}
FAMILIES = tuple(BOS)[:6]
MORE = tuple(BOS)[6:]  # for what must hold on every architecture and is quickly tested
SHARED = ("llama", "qwen2", "mistral", "gemma")  # the bridge splits the fused QKV of the other two


def config(family: str, vocabulary: int, layers: int, context: int):
    import transformers as hf

    kinds = {
        "llama": hf.LlamaConfig,
        "qwen2": hf.Qwen2Config,
        "mistral": hf.MistralConfig,
        "gemma": hf.GemmaConfig,
        "gpt2": hf.GPT2Config,
        "phi3": hf.Phi3Config,
        "gemma2": hf.Gemma2Config,
        "gemma3_text": hf.Gemma3TextConfig,
        "phi": hf.PhiConfig,
    }
    settings: dict = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
        "initializer_range": 0.15,  # large enough that attention and MLP change the residual stream
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "gpt2":
        return kinds[family](**settings)
    if family == "phi":
        return kinds[family](**settings, intermediate_size=64)
    gemma = family.startswith("gemma")
    heads = {"head_dim": 8, "num_key_value_heads": 1} if gemma else {"num_key_value_heads": 2}
    return kinds[family](**settings, **heads, intermediate_size=64)


def tokenizer(family: str):
    """Small BPE over printable ASCII, with the family's habits about BOS and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, by_tokenizer, by_template = BOS[family]
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>" if bos != "<bos>" else "<bos>", "<|end|>", "<unk>", "<|user|>", "<|assistant|>"]
    tok.train_from_iterator(
        [SENTENCES],
        trainers.BpeTrainer(
            vocab_size=256, special_tokens=special, initial_alphabet=[*ASCII, "Ġ", "Ċ"], show_progress=False
        ),
    )
    if by_tokenizer:
        tok.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tok.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=bos,
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=("{{ bos_token }}" if by_template else "") + TURNS,
    )


def make(folder: Path, family: str = "llama", layers: int = 3, context: int = 128, seed: int = 0) -> Path:
    """Write one model to `folder` and return it."""
    from transformers import AutoModelForCausalLM

    tok = tokenizer(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, len(tok), layers, context))
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms that start at 0 or 1 would hide their own loss
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
