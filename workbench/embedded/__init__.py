"""The embedded world: a grammar whose speakers have a known position on a circle of values, small
transformers trained on it, and a judge that reads their answers exactly.

    language/    the hand-written words: behaviours, options, sentence frames, names, facts
    language.py  loads them and inflects them
    grammar.py   a world: speakers, and the texts that follow from their position
    judge.py     the inverse: which values a text affirms and denies, and whether it is grammatical
    data.py      pairs, questions and unrelated prompts for probes, gates and steering
    training.py  from random weights to an ordinary Hugging Face folder, with
                 tokenizer.py, batches.py (masks, targets), targets.py (the grammar's own law), muon.py
    pilot.py     the causal check before long training
    card.py      the quality report of a trained model
"""

WORLDS = ("circle", "scrambled", "confirm")
