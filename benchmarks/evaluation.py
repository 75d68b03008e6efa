"""The project's own evaluation: every method on three models, from their configs in `evaluations/`.

    python benchmarks/evaluation.py [--models FOLDER] [--only circle confirm craftgpt]

`circle` is the phantom that everything was made on; `confirm` has another seed and another wording and is run by the
same config but for its name; `craftgpt` is a chat model by others, whose folder lies in --models, judged by the
detector that `detector.py` trains. Writes results/eval_NAME.csv (a row per method, value, prompt and decoding),
eval_NAME_summary.csv (the report's headline table) and eval_NAME_paired.csv (every method against Base and ConVA
against every other). All answers and the report stay under build/evaluations/NAME; a run goes on where it was.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from workbench.evaluation import Evaluation, non_inferior
from workbench.evaluation.config import read_config, run_config
from workbench.report import headline

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NAMES = ("circle", "confirm", "craftgpt")


def paired(result: Evaluation) -> pd.DataFrame:
    """Differences over all values: to Base, and ConVA's to every other method; losses of unrelated accuracy."""
    parts = [result.compare(metric=metric, prompt=prompt).assign(metric=metric, against="Base")
             for metric in ("csr", "fr") for prompt in ("none", "negative")]
    methods = [m for m in dict.fromkeys(result.answers["method"]) if m not in ("Base", "ConVA")]
    parts += [result.compare(base=method).query("method == 'ConVA'").assign(metric="csr", against=method)
              for method in methods]
    unrelated = result.pick("unrelated")
    if len(unrelated) and "right" in unrelated:
        loss = non_inferior(unrelated).rename(columns={"loss": "difference", "bound": "high"})
        parts.append(loss.assign(metric="unrelated loss", against="Base"))
    return pd.concat(parts).query("value == 'all'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="folder of models by others, with craftgpt in it")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for name in given.only:
        config = read_config(HERE / "evaluations" / ("circle.toml" if name == "confirm" else f"{name}.toml"))
        if name == "confirm":
            config = replace(config, model="embedded:confirm", store=config.store.replace("circle", "confirm"))
        if name == "craftgpt":
            if given.models is None:
                print("craftgpt: left out, no --models")
                continue
            config = replace(config, model=str(given.models.absolute() / config.model))
        result = run_config(config)
        said = result.pick().query("note == ''")["method"].unique()  # a context may be too short for all prompts of one
        leaks = {method: result.leakage(method) for method in said if method != "Base"}
        tables = {"": result.table(), "_summary": headline(result, leaks), "_paired": paired(result)}
        for part, table in tables.items():
            table.round(4).to_csv(RESULTS / f"eval_{name}{part}.csv", index=False)
        print(f"{name}\n{tables['_summary'][['method', 'prompt', 'temperature', 'csr', 'fr', 'n']].round(3)}\n")


if __name__ == "__main__":
    main()
