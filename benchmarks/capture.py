"""Measure the capture of every layer's residual stream at the last token against peers: speed, memory, agreement.

    workbench bench capture
    python benchmarks/capture.py [--models embedded:circle,craftgpt] [--shapes 100m] [--texts N] [--repeat 3]
    python benchmarks/capture.py --device cuda --shapes 1b,8b
    python benchmarks/capture.py --growth     memory of a store of 10,000 texts against one of 1,000
    python benchmarks/capture.py --read       one layer of a store on disk against numpy.load
    python benchmarks/capture.py --ray        two Ray workers of one thread against one and against this process

Every capture starts from the same texts, natural statements and then some long prompts, and ends with float32 numpy
or a store on disk; all but the one "as repeng" see the same batches. Competitors take turns, round by round; a ratio
compares with the bare forward of the same round, and is better the larger it is; cpu_of_bare compares processor
seconds, which other processes disturb less, and counts what overlaps as if it did not. Speed counts real tokens, not
padding. peak_mb is what a run needs beyond the loaded model, on the CPU in a process of its own. Shapes are
random-initialised Llamas. Writes one section of results/capture.json and keeps the others.

nnsight is no dependency. To have its row, keep it out of the environment:
    pip install --no-deps --target FOLDER "nnsight==0.8.*" zstandard; python benchmarks/capture.py --peers FOLDER
"""

import argparse
import copy
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

import workbench as wb
from workbench import activations
from workbench.activations.files import Files
from workbench.activations.store import Store, chunk_rows
from workbench.models import TOLERANCE, Model, residual

RESULTS = Path(__file__).parent / "results"
LONG = 512  # tokens of a long prompt, fewer where the context is shorter
GROWTH = (1_000, 10_000)  # texts
ON_RAY = (300, 1_200)  # texts
READ = {"layers": 4, "texts": 2_000, "d_model": 4_096}
AGREE = TOLERANCE | {torch.float32: 1e-4}  # of max |difference| / max |ours|, the worst layer
MB = 1e6
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128, "heads": (4, 2), "vocab_size": 4_000},
    "100m": {  # 81M; the unembedding is to the layers as in the 1B
        "hidden_size": 768, "num_hidden_layers": 10, "intermediate_size": 2_048, "heads": (12, 4), "vocab_size": 24_000,
    },
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2_048, "num_hidden_layers": 16, "intermediate_size": 8_192, "heads": (32, 8),
        "vocab_size": 128_256,
    },
    "8b": {  # Llama-3.1-8B
        "hidden_size": 4_096, "num_hidden_layers": 32, "intermediate_size": 14_336, "heads": (32, 8),
        "vocab_size": 128_256, "tie_word_embeddings": False,
    },
}  # fmt: skip

Tensors = list[torch.Tensor]  # one (row, d_model) for each layer


class Missing(Exception):
    """A competitor cannot run here; the message is what its row says."""


@dataclass
class Job:
    """What one model is measured on; also how a child process is told."""

    source: str  # what load_model takes
    texts: int
    long: int
    batch_tokens: int
    device: str
    threads: int
    seed: int
    peers: str | None = None

    @cached_property
    def model(self) -> Model:
        return wb.load_model(self.source, device=self.device, dtype="float32")

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory:
        """Place for stores, gone with the job."""
        return tempfile.TemporaryDirectory(prefix="capture-", ignore_cleanup_errors=True)

    def twin(self) -> Any:
        """A copy of the Hugging Face model over the same parameters, for those that leave hooks or wrappers behind."""
        return copy.deepcopy(self.model.twin, {id(parameter): parameter for parameter in self.model.twin.parameters()})

    @cached_property
    def prompts(self) -> list[str]:
        """`texts` natural statements that fit the context, then `long` prompts of statements one after another."""
        pairs = wb.load_pairs("natural")
        statements = [*pairs["positive"], *pairs["negative"]]
        fitting = [
            text
            for text, ids in zip(statements, self.model.encode(statements), strict=True)
            if len(ids) <= self.model.context
        ]
        generator = np.random.default_rng(self.seed)
        order = generator.permutation(len(fitting))
        chosen = [fitting[order[row % len(order)]] for row in range(self.texts)]
        for _ in range(self.long):
            prompt = ""
            for row in generator.permutation(len(fitting)):
                longer = f"{prompt} {fitting[row]}".strip()
                if len(self.model.encode([longer])[0]) > min(LONG, self.model.context):
                    break
                prompt = longer
            chosen.append(prompt)
        return chosen


# --- the competitors: each is prepared once and then called with texts --------------------------------------


def batches(job: Job, texts: list[str]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(rows, input_ids, attention_mask) as wb.capture makes them without a store, whose chunks end batches sooner."""
    ids = job.model.encode(texts)
    for rows in activations.batches([len(tokens) for tokens in ids], job.batch_tokens):
        yield rows, *job.model.pad([ids[row] for row in rows], side="right")


def last(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(row, d_model) of (row, position, d_model) padded on the right."""
    return tensor[torch.arange(len(mask), device=mask.device), mask.sum(dim=1) - 1]


def gather(job: Job, texts: list[str], read: Callable[[torch.Tensor, torch.Tensor], Tensors]) -> np.ndarray:
    """(layer, text, d_model) of what `read` takes from each batch."""
    result = np.empty((job.model.n_layers, len(texts), job.model.d_model), dtype=np.float32)
    for rows, ids, mask in batches(job, texts):
        result[:, rows] = torch.stack(read(ids, mask)).float().cpu().numpy()
    return result


Run = Callable[[list[str]], Any]


def no_model(job: Job) -> Run:
    def run(texts):
        for _ in batches(job, texts):
            pass

    return run


def bare(job: Job) -> Run:
    base = job.model.twin.base_model

    def run(texts):
        for _, ids, mask in batches(job, texts):
            base(ids, attention_mask=mask, use_cache=False)

    return run


def hidden_states(job: Job) -> Run:
    base = job.twin().base_model  # transformers leaves its capturing hooks on the model

    def read(ids, mask):
        out = base(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        return [last(states, mask) for states in out.hidden_states[1:]]

    return lambda texts: gather(job, texts, read)


def transformer_lens(job: Job, filtered: bool) -> Run:
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(job.model.n_layers)]
    only = {"names_filter": names} if filtered else {}

    def read(ids, mask):
        _, cache = job.model.bridge.run_with_cache(ids, attention_mask=mask, **only)
        return [last(cache[name], mask) for name in names]

    return lambda texts: gather(job, texts, read)


def nnsight_trace(job: Job) -> Run:
    if job.peers and job.peers not in sys.path:
        sys.path.append(job.peers)  # last, so that it replaces nothing
    try:
        import nnsight  # pyright: ignore[reportMissingImports]  # it changes torch, but only Tensor.backward
    except ImportError as problem:
        raise Missing(f"not installed ({problem}): how to is in this file's docstring") from None
    names = {id(module): name for name, module in job.model.twin.base_model.named_modules()}
    wrapped = nnsight.NNsight(job.twin().base_model)
    blocks = [wrapped.get(names[id(block)]) for block in job.model.blocks]

    def read(ids, mask):
        with wrapped.trace(ids, attention_mask=mask, use_cache=False):
            seen = nnsight.save([last(residual(block.output), mask) for block in blocks])
        return seen

    return lambda texts: gather(job, texts, read)


def as_repeng(job: Job) -> Run:
    """Whole model, 32 texts at a time in the order given, left padding, each vector moved by itself."""
    twin = job.twin()

    def run(texts):
        ids = job.model.encode(texts)
        vectors: list[list[np.ndarray]] = [[] for _ in range(job.model.n_layers)]
        for start in range(0, len(ids), 32):
            input_ids, mask = job.model.pad(ids[start : start + 32], side="left")
            states = twin(input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
            for row in range(len(input_ids)):
                for layer, kept in enumerate(vectors):
                    kept.append(states[layer][row, -1].float().cpu().numpy())
        return np.stack([np.stack(kept) for kept in vectors])

    return run


def ours(job: Job, store: bool = False, engine: str = "huggingface") -> Run:
    def run(texts):
        options = {"batch_tokens": job.batch_tokens, "engine": engine, "progress": False, "say": lambda _: None}
        if store:
            options["store"] = Path(tempfile.mkdtemp(dir=job.folder.name)) / "store"
        return wb.capture(job.model, texts, **options)

    return run


BARE, REPENG, OURS, STORE = "bare forward of the base model", "as repeng", "wb.capture", "wb.capture, store"
HIDDEN, FILTERED = "output_hidden_states", "TransformerLens, resid_post only"
COMPETITORS: dict[str, Callable[[Job], Run]] = {
    "encode and pad only, no model": no_model,
    BARE: bare,
    HIDDEN: hidden_states,
    "TransformerLens, whole cache": lambda job: transformer_lens(job, filtered=False),
    FILTERED: lambda job: transformer_lens(job, filtered=True),
    "nnsight": nnsight_trace,
    REPENG: as_repeng,
    OURS: ours,
    STORE: lambda job: ours(job, store=True),
    "wb.capture, store, transformer-lens": lambda job: ours(job, store=True, engine="transformer-lens"),
}
ON_CUDA = [BARE, HIDDEN, FILTERED, OURS, STORE]
NORMED = (HIDDEN, REPENG)  # transformers gives the last layer after the final norm


# --- measuring ----------------------------------------------------------------------------------------------


def timed(run: Run, texts: list[str], cuda: bool) -> tuple[tuple[float, float], float | None, Any]:
    """(seconds, processor seconds of all threads), peak MB on the GPU beyond what lay there before (None on the CPU),
    result.
    """
    gc.collect()
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start, used = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        result = run(texts)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start, time.process_time() - used
    return seconds, (torch.cuda.max_memory_allocated() - before) / MB if cuda else None, result


def agreement(name: str, result: Any, reference: np.ndarray, allowed: float) -> str:
    """What the row says of the result against wb.capture's."""
    if result is None:
        return "nothing kept"
    if (got := np.asarray(result)).shape != reference.shape:
        return f"NO: shape {got.shape}"
    errors = np.abs(got - reference).max(axis=(1, 2)) / np.abs(reference).max(axis=(1, 2))
    compared = errors[:-1] if name in NORMED else errors
    note = "; last layer is after the final norm" if name in NORMED else ""
    if compared.max() <= allowed:
        return f"yes, {compared.max():.0e}{note}"
    if name == REPENG:
        note += "; left padding moves absolute positions"
    return f"NO: layer {compared.argmax()} differs by {compared.max():.0e}{note}"


def padding(job: Job) -> dict[str, int]:
    """Tokens that are real, and those computed in our batches and in fixed ones of 32."""
    lengths = [len(ids) for ids in job.model.encode(job.prompts)]
    fixed = [lengths[start : start + 32] for start in range(0, len(lengths), 32)]
    return {
        "real": sum(lengths),
        "in our batches": sum(ids.numel() for _, ids, _ in batches(job, job.prompts)),
        "in fixed 32": sum(len(part) * max(part) for part in fixed),
    }


def race(job: Job, repeat: int, names: list[str]) -> list[dict[str, Any]]:
    """One row for each competitor, with every round's time."""
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name in names:
        try:
            runs[name] = COMPETITORS[name](job)
            timed(runs[name], job.prompts[:4], job.device == "cuda")
        except Missing as problem:
            notes[name] = str(problem)
            runs.pop(name, None)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, list[float | None]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    for turn in range(repeat):
        for name, run in runs.items():
            (took, used), peak, result = timed(run, job.prompts, job.device == "cuda")
            seconds[name].append(took)
            processor[name].append(used)
            peaks[name].append(peak)
            if turn == 0:
                results[name] = result
            del result
            print(f"{job.model.name}, round {turn + 1} of {repeat}: {name} {took:.1f} s", file=sys.stderr, flush=True)
    reference = np.asarray(results[OURS])
    tokens = sum(len(ids) for ids in job.model.encode(job.prompts))
    rows = []
    for name in names:
        row: dict[str, Any] = {"model": job.model.name, "capture": name}
        if name in runs:
            ratios = [limit / took for limit, took in zip(seconds[BARE], seconds[name], strict=True)]
            row |= {"tokens_per_s": tokens / median(seconds[name]), "of_bare": median(ratios)}
            row |= {"lowest": min(ratios), "highest": max(ratios), "seconds": seconds[name]}
            row |= {"cpu_of_bare": median(a / b for a, b in zip(processor[BARE], processor[name], strict=True))}
            row |= {"peak_mb": peaks[name][0]}
            row |= {"agrees": agreement(name, results[name], reference, AGREE[job.model.dtype])}
        rows.append(row | {"agrees": notes.get(name, row.get("agrees"))})
    return rows


def resident(what: str) -> float:
    """MB of "VmRSS", resident now, or "VmHWM", the most since the last reset. NaN where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) * 1024 / MB for line in lines if line.startswith(what))


def child(order: dict[str, Any]) -> dict[str, float]:
    """Inside a fresh process: peak RSS over one run of one competitor, {"peak": MB, "rise": MB above the start}.

    It starts after loading and a warm-up, which imports what is imported late. The high-water mark is set back there,
    since the peak of loading would hide the run's; ru_maxrss cannot be set back, and begins with the size of the
    process that started this one.
    """
    job = Job(**order["job"])
    torch.set_num_threads(job.threads)
    run, texts = COMPETITORS[order["name"]](job), job.prompts
    timed(run, texts[:4], cuda=False)
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return {"peak": float("nan"), "rise": float("nan")}
    start = resident("VmRSS")
    timed(run, texts, cuda=False)
    peak = resident("VmHWM")
    return {"peak": peak, "rise": peak - start}


def in_child(job: Job, name: str) -> dict[str, float]:
    order = json.dumps({"job": asdict(job), "name": name})
    done = subprocess.run([sys.executable, __file__, "--child", order], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed in its own process:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def add_memory(job: Job, rows: list[dict[str, Any]]) -> None:
    """Peak RSS of each competitor that ran, from a process of its own; two at a time, as RSS does not mind."""
    ran = [row for row in rows if "seconds" in row]
    with ThreadPoolExecutor(2) as pool:
        for row, memory in zip(ran, pool.map(lambda row: in_child(job, row["capture"]), ran), strict=True):
            row["peak_mb"] = memory["rise"]


def growth(job: Job) -> list[dict[str, Any]]:
    """Memory of a store capture, few texts and many, and its ratio to that of the few."""
    found = [in_child(replace(job, texts=texts, long=0), STORE) for texts in GROWTH]
    return [
        {"texts": texts, "peak_rss_mb": memory["peak"], "above_model_mb": memory["rise"]}
        | {"peak_ratio": memory["peak"] / found[0]["peak"], "above_ratio": memory["rise"] / found[0]["rise"]}
        for texts, memory in zip(GROWTH, found, strict=True)
    ]


def on_ray(job: Job) -> list[dict[str, Any]]:
    """Seconds for few texts and for many, start of Ray and workers included, and the speed that remains without it."""
    ways = {"this process": {}} | {f"Ray, {n} workers": {"engine": "ray", "workers": n} for n in (1, 2)}
    rows = []
    for name, options in ways.items():
        taken, tokens = [], []
        for texts in ON_RAY:
            prompts = replace(job, texts=texts).prompts
            tokens.append(sum(len(ids) for ids in job.model.encode(prompts)))
            start = time.perf_counter()
            wb.capture(job.model, prompts, store=Path(tempfile.mkdtemp(dir=job.folder.name)) / "store",
                       batch_tokens=job.batch_tokens, progress=False, say=lambda _: None, **options)  # fmt: skip
            taken.append(time.perf_counter() - start)
        speed = (tokens[1] - tokens[0]) / (taken[1] - taken[0])
        row = {"way": name, **{f"s_{texts}": took for texts, took in zip(ON_RAY, taken, strict=True)}}
        rows.append(row | {"further_tokens_per_s": speed, "speed_up": speed / rows[0]["further_tokens_per_s"]
                           if rows else 1.0})  # fmt: skip
    return rows


# --- the store on disk --------------------------------------------------------------------------------------


def make_store(path: Path, array: np.ndarray) -> None:
    """Write (layer, text, d_model) as wb.capture(store=path) lays it out, without a model."""
    layers, texts, width = array.shape
    files, names = Files(path), [f"{text:032x}" for text in range(texts)]
    identity = {"layers": [*range(layers)], "width": width, "store_dtype": "float32", "hook": "resid_post"}
    with files.lock():
        store = Store.create(files, identity | {"position": "last"}, chunk_rows(width, "float32", texts), "d_model")
        store.grow(-(-texts // store.chunk) * store.chunk)
        for start in range(0, texts, store.chunk):
            here = slice(start, start + store.chunk)
            store.commit(store.write_part(start, [(name, 1) for name in names[here]], array[:, here]))
        entries = pd.DataFrame({"text_id": names, "content": names, "n_tokens": 1, "rows": 1, "row": [*range(texts)]})
        store.finish(entries, {})


def reading(repeat: int = 15) -> list[dict[str, Any]]:
    """Milliseconds to read one layer, warm and in turns, against numpy.load of the same bytes."""
    array = np.random.default_rng(0).standard_normal((READ["layers"], READ["texts"], READ["d_model"]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store, plain = Path(folder) / "store", Path(folder) / "layer.npy"
        make_store(store, array)
        np.save(plain, array[1])
        opened = activations.open_activations(store)
        ways = {
            "numpy.load": lambda: np.load(plain),
            "a layer of the store": lambda: opened.sel(layer=1).values,
            "the store opened, and a layer": lambda: activations.open_activations(store).sel(layer=1).values,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            if not np.array_equal(way(), array[1]):
                raise ValueError("A layer came back changed.")
        for _ in range(repeat):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    plainly = median(times["numpy.load"])
    return [
        {"way": name, "median_ms": 1e3 * median(taken), "to_numpy_load": median(taken) / plainly}
        for name, taken in times.items()
    ]


# --- models -------------------------------------------------------------------------------------------------


def llama_parts(shape: str) -> tuple[Any, Any]:
    """Configuration, and a tokenizer trained on the natural statements on the spot, so that none is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    pairs = wb.load_pairs("natural")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, letters = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4_000, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tok.train_from_iterator([*pairs["positive"], *pairs["negative"]], trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    settings = {"tie_word_embeddings": True, "max_position_embeddings": 2_048} | SHAPES[shape]
    heads, groups = settings.pop("heads")
    special_ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(num_attention_heads=heads, num_key_value_heads=groups, **special_ids, **settings), tokenizer


def random_llama(shape: str, folder: Path, device: str) -> Model | None:
    """A random-initialised Llama: on the CPU a folder with its weights, on a GPU made there and never on disk."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, tokenizer = llama_parts(shape)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # read back, it has the name that TransformerLens asks for
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    if device == "cpu":
        made.save_pretrained(folder)
        return None
    # load_model does the rest; only its reading of the weights is replaced.
    parts = {"check_folder": lambda *_: None, "_read": lambda *_: (made, tokenizer)}
    with mock.patch.multiple("workbench.models", **parts):
        return wb.load_model(folder, device=device, dtype=dtype)


def jobs(args: argparse.Namespace, folder: Path) -> Iterator[Job | str]:
    """One after another, as they are wanted: jobs, or a line that says why there is none."""
    cuda = args.device == "cuda"

    def job(source: str, texts: int, long: int) -> Job:
        texts, long = (texts if args.texts is None else args.texts), (long if args.long is None else args.long)
        return Job(source, texts, long, args.batch_tokens, args.device, args.threads, args.seed, args.peers)

    for name in filter(None, args.models.split(",")):
        if name == "craftgpt":
            reference = os.environ.get("WORKBENCH_REFERENCE")
            if not reference:
                yield "craftgpt is left out: WORKBENCH_REFERENCE is not set"
                continue
            name = str(Path(reference) / "models" / "craftgpt")
        yield job(name, 192, 8)
    for shape in filter(None, args.shapes.split(",")):
        place = folder / f"llama-{shape}"
        model = random_llama(shape, place, args.device)
        made = job(str(place), *((2_000, 64) if cuda else (32, 8)))
        if model is not None:
            made.model = model
        yield made
        del made, model  # before the next one is made
        gc.collect()


# --- the command --------------------------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> dict[str, Any]:
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "processor": platform.machine(), "threads": args.threads}
    if args.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    for library in ("torch", "transformers", "transformer-lens", "nnsight"):
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = None
    return facts


def report(args: argparse.Namespace, section: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the table and put it into the section of the results file."""
    table = pd.DataFrame(rows).drop(columns="seconds", errors="ignore")
    shown = {}
    for name, column in table.items():
        text = f"{{:<{column.astype(str).str.len().max()}}}"  # to_string would put words to the right
        number = "{:,.0f}" if str(name).endswith(("_per_s", "_mb", "texts")) else "{:.3f}"
        shown[str(name)] = (number if pd.api.types.is_numeric_dtype(column) else text).format
    print(table.to_string(index=False, na_rep="", formatters=shown, justify="left"))
    whole = json.loads(args.out.read_text()) if args.out.is_file() else {}
    whole[section] = {"machine": machine(args), "settings": settings, "rows": rows}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(rounded(whole), indent=1) + "\n")


def rounded(part: Any) -> Any:
    """Four significant digits; NaN as null, which JSON lacks."""
    if isinstance(part, dict):
        return {key: rounded(value) for key, value in part.items()}
    if isinstance(part, list):
        return [rounded(value) for value in part]
    if isinstance(part, float):
        return float(f"{part:.4g}") if np.isfinite(part) else None
    return part


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Capture against peers; see the docstring of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", help="names that load_model takes, and craftgpt (default on the CPU: both)")
    parser.add_argument("--shapes", help=f"random-initialised Llamas: {', '.join(SHAPES)} (100m; on CUDA 1b,8b)")
    parser.add_argument("--texts", type=int, help="statements for each model (192; Llama 32; CUDA 2,000)")
    parser.add_argument("--long", type=int, help="long prompts for each model (8; CUDA 64)")
    parser.add_argument("--batch-tokens", type=int, default=None, help="padded tokens of a batch (4,096; CUDA 16,384)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure peak RSS")
    parser.add_argument("--peers", help="a folder with further packages, as of pip install --target")
    parser.add_argument("--out", type=Path, default=RESULTS / "capture.json")
    parser.add_argument("--growth", action="store_true", help="memory of a large against a small store")
    parser.add_argument("--read", action="store_true", help="reading a layer against numpy.load")
    parser.add_argument("--ray", action="store_true", help="workers on this machine against this process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    for name, on_cuda, on_cpu in (
        ("models", "", "embedded:circle,craftgpt"),
        ("shapes", "1b,8b", "100m"),
        ("batch_tokens", 16_384, 4_096),
    ):
        if getattr(args, name) is None:
            setattr(args, name, on_cuda if cuda else on_cpu)
    return args


def compare(args: argparse.Namespace) -> None:
    settings: dict[str, Any] = {name: getattr(args, name) for name in ("batch_tokens", "repeat", "seed")}
    rows: list[dict[str, Any]] = []
    said, settings["models"] = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(args, Path(folder)):
            if isinstance(job, str):
                said.append(job)
                continue
            found = race(job, args.repeat, ON_CUDA if args.device == "cuda" else list(COMPETITORS))
            parameters = sum(parameter.numel() for parameter in job.model.twin.parameters())
            facts = {"texts": job.texts, "long": job.long, "parameters": parameters, "dtype": str(job.model.dtype)}
            settings["models"][job.model.name] = facts | {"tokens": padding(job)}
            if args.device == "cpu" and not args.no_memory:
                add_memory(job, found)
            rows += found
            del job
    report(args, args.device, settings | {"left out": said}, rows)
    for name, facts in settings["models"].items():
        print(f"{name}: {facts['parameters'] / 1e6:,.1f}M parameters, {facts['dtype']}; tokens {facts['tokens']}")
    for line in said:
        print(line)


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
    elif args.growth:
        job = Job("embedded:circle", 0, 0, args.batch_tokens, "cpu", args.threads, args.seed)
        report(args, "growth", {"batch_tokens": args.batch_tokens}, growth(job))
    elif args.ray:
        with tempfile.TemporaryDirectory() as folder:
            args.models, args.long = "", 0
            (job,) = (job for job in jobs(args, Path(folder)) if isinstance(job, Job))
            report(args, "ray", {"batch_tokens": args.batch_tokens, "shape": args.shapes}, on_ray(job))
    elif args.read:
        report(args, "read", READ, reading())
    else:
        compare(args)


if __name__ == "__main__":
    main()
