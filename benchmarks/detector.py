"""A small detector of human values, trained on Touché23: a judge and a gate where no other can be had.

    python benchmarks/detector.py --data FOLDER/touche23 [--out build/detector]

A BERT of 3M parameters from random weights on Touché23's 5,393 training arguments, ten labels. It is weak, and prints
how weak: F1 on the validation split beside that of "every label always". A real detector takes its place by its name.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import workbench as wb

LENGTH, WIDTH, EPOCHS, BATCH = 96, 192, 6, 32


def arguments(folder: str, split: str) -> tuple[list[str], np.ndarray]:
    """Premises of a split, and whether each of the ten values is in them: (argument, value)."""
    rows = wb.load_labelled(folder, split)
    held = pd.crosstab(rows["argument"], rows["value"]).reindex(columns=list(wb.VALUES), fill_value=0) > 0
    return rows.drop_duplicates("argument").set_index("argument")["text"].loc[held.index].tolist(), held.to_numpy()


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=6000, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, special.index(name)) for name in special[2:]])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", model_max_length=256)


def f1(probability: np.ndarray, truth: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Of each value."""
    said = probability > threshold
    return 2 * (said & truth).sum(0) / (said.sum(0) + truth.sum(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with Touché23's tables")
    parser.add_argument("--out", default="build/detector")
    given = parser.parse_args()
    if given.data is None:
        print("left out, no --data")
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (texts, truth), (held, held_truth) = (arguments(given.data, split) for split in ("training", "validation"))
    reader = tokenizer(texts)
    network = BertForSequenceClassification(BertConfig(
        vocab_size=len(reader), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=256, problem_type="multi_label_classification",
        id2label=dict(enumerate(wb.VALUES)), label2id={value: n for n, value in enumerate(wb.VALUES)}))

    def batch(rows: list[str]) -> Any:
        return reader(rows, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt",
                      return_token_type_ids=False)

    steps = EPOCHS * -(-len(texts) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), 5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-4, steps, pct_start=0.1)
    order = np.concatenate([np.random.default_rng(epoch).permutation(len(texts)) for epoch in range(EPOCHS)])
    network.train()
    for rows in tqdm(np.array_split(order, steps)):
        loss = network(**batch([texts[i] for i in rows]), labels=torch.tensor(truth[rows]).float()).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        logits = [network(**batch(held[i : i + 64])).logits for i in range(0, len(held), 64)]
    probability = torch.cat(logits).sigmoid().numpy()
    # Odd rows choose the thresholds, even rows tell how good they are.
    grid = np.linspace(0.05, 0.6, 40)
    best = np.array([grid[np.argmax([f1(probability[1::2], held_truth[1::2], t)[v] for t in grid])] for v in range(10)])
    told = pd.DataFrame({
        "value": wb.VALUES, "F1": f1(probability[::2], held_truth[::2], best),
        "always": f1(np.ones_like(probability[::2]), held_truth[::2], best * 0), "threshold": best,
    })
    print(told.round(3).to_string(index=False))
    print(f"mean F1 {told['F1'].mean():.3f}, always {told['always'].mean():.3f}")
    out = Path(given.out)
    network.save_pretrained(out)
    reader.save_pretrained(out)


if __name__ == "__main__":
    main()
