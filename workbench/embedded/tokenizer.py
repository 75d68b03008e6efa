"""The tokenizer of the embedded models."""

import json
from pathlib import Path

from .grammar import every_text

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% elif m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}{{ raise_exception('The embedded models know the roles user and assistant.') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer():
    """Every word of the world is one token; anything else falls apart into byte pairs, so no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    texts = every_text()
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 128,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(texts, trainer)
    trained = json.loads(base.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    words = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    model = models.BPE(vocab=vocabulary, merges=[tuple(m) for m in trained["merges"]], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    # Words bring their space along; the first of a text does without.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_tokenizer(folder: Path):
    """The tokenizer that a model in training began with: its word numbers must not change."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)
