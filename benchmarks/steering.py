"""Measure steered generation against plain Hugging Face generate on the same weights, and against peers.

    workbench bench steering
    python benchmarks/steering.py [--shape 100m] [--batches 1,16] [--tokens 32] [--repeat 5] [--device cuda --shape 8b]
    python benchmarks/steering.py --peers FOLDER     repeng and nnsight too

A random-initialised Llama, prompts of natural statements, greedy, every row to its full number of tokens. Steered are
the layers that the released ConVA steers, 10-25 of 32 or as many in proportion; the push is as long as it comes out,
since what it does to the words does not matter here. Competitors take turns, round by round; `of_limit` compares with
plain Hugging Face generate in the same round (1: as fast; median, lowest, highest), cpu_of_limit does so in processor
seconds, which other processes disturb less; `ms_per_layer` is what one steered layer adds to one step over the same
loop unsteered (on the CPU in processor time). The last table is the time to have every layer's eps: in one
prefill (`steer.on`), and by one pass per layer as the released code does it, whole or stopped at the layer it reads;
`faster` is how much faster than the whole passes.
Writes one section of results/steering.json and keeps the others.

repeng and nnsight are no dependencies. To have their rows, keep them out of the environment:
    pip install --no-deps --target FOLDER repeng "nnsight==0.8.*" zstandard
"""

import argparse
import copy
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from capture import SHAPES, Missing, random_llama, report

import workbench as wb
from workbench.models import Model, residual
from workbench.steering.intervention import Intervention

RESULTS = Path(__file__).parent / "results"
VALUE = "security"
PROMPT = 32  # tokens of a prompt
LIMIT, OURS = "Hugging Face generate", "wb.generate"


@dataclass
class Job:
    """A model, what it is asked, and the methods that steer it."""

    model: Model
    tokens: int
    peers: str | None

    @cached_property
    def layers(self) -> list[int]:
        n = self.model.n_layers
        return list(range(round(10 / 32 * n), round(25 / 32 * n) + 1))

    @cached_property
    def methods(self) -> dict[str, Intervention]:
        table = wb.load_pairs("natural").query("value in ('security', 'power')").groupby("value").head(20)
        probes = {m: wb.fit_probes(self.model, table, m, layers=self.layers) for m in ("logistic", "mean_difference")}
        conva = partial(wb.ConVA, probes["logistic"], VALUE, target=0.999, layers=self.layers)
        caa = wb.CAA(probes["mean_difference"], VALUE, strength=0.4, layers=self.layers)
        return {"CAA": caa, "ConVA": conva(), "ConVA, token": conva(scope="token")}

    @cached_property
    def vectors(self) -> dict[int, torch.Tensor]:
        """What CAA adds at each layer, for those that add by other means."""
        nothing = torch.zeros(1, self.model.d_model, device=self.model.device)
        return {layer: self.methods["CAA"].shift(layer, nothing)[0].to(self.model.dtype) for layer in self.layers}

    def prompts(self, rows: int) -> list[str]:
        """Statements one after another, as many tokens each as fit into PROMPT."""
        said = wb.load_pairs("natural")["positive"].tolist()
        found = []
        for row in range(rows):
            text = said[row]
            while len(self.model.encode([longer := f"{text} {said[(row + len(text)) % len(said)]}"])[0]) <= PROMPT:
                text = longer
            found.append(text)
        return found

    def twin(self) -> Any:
        """A copy over the same parameters, for those that wrap modules or leave hooks behind."""
        return copy.deepcopy(self.model.twin, {id(parameter): parameter for parameter in self.model.twin.parameters()})


# --- the competitors: prepared once, then called with prompts; each returns the number of tokens it wrote -----

Run = Callable[[list[str]], int]


def hugging_face(job: Job, steer: Intervention | None = None, module: Any = None) -> Run:
    def run(prompts):
        ids, mask = job.model.pad(job.model.encode(prompts))
        settings = {"max_new_tokens": job.tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with nullcontext() if steer is None else steer.on(job.model):
            out = (module or job.model.twin).generate(ids, attention_mask=mask, **settings)
        return (out.shape[1] - ids.shape[1]) * len(out)

    return run


def ours(job: Job, steer: Intervention | None = None, **settings: Any) -> Run:
    def run(prompts):
        wb.generate(job.model, prompts, steer=steer, max_new_tokens=job.tokens, chat=False, **settings)
        return job.tokens * len(prompts)  # its end tokens were taken away

    return run


def bridge(job: Job) -> Run:
    def add(layer: int) -> Any:
        return f"blocks.{layer}.hook_resid_post", lambda e, hook: e + job.vectors[layer]

    def run(prompts):
        ids, mask = job.model.pad(job.model.encode(prompts))
        with job.model.bridge.hooks(fwd_hooks=[add(layer) for layer in job.layers]):
            out = job.model.bridge.generate(
                ids, max_new_tokens=job.tokens, do_sample=False, stop_at_eos=False, verbose=False, attention_mask=mask
            )
        return (out.shape[1] - ids.shape[1]) * len(out)

    return run


def repeng(job: Job) -> Run:
    # Its control.py alone: the package asks numpy for a name that version 2 no longer has.
    if not job.peers or not (place := Path(job.peers) / "repeng" / "control.py").is_file():
        raise Missing("not installed: how to is in this file's docstring")
    wrapped = runpy.run_path(str(place))["ControlModel"](job.twin(), job.layers)
    wrapped.set_raw_control(job.vectors)
    return hugging_face(job, module=wrapped)


def nnsight(job: Job) -> Run:
    if job.peers and job.peers not in sys.path:
        sys.path.append(job.peers)  # last, so that it replaces nothing
    try:
        from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]
    except ImportError as problem:
        raise Missing(f"not installed ({problem}): how to is in this file's docstring") from None
    wrapped = LanguageModel(job.twin(), tokenizer=job.model.tokenizer)

    def run(prompts):
        ids, mask = job.model.pad(job.model.encode(prompts))
        count = job.tokens
        settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with wrapped.generate({"input_ids": ids, "attention_mask": mask}, **settings) as tracer:
            for _ in tracer.iter[:count]:
                for layer in job.layers:
                    wrapped.model.layers[layer].output = wrapped.model.layers[layer].output + job.vectors[layer]
        return count * len(ids)

    return run


COMPETITORS: dict[str, Callable[[Job], Run]] = {
    LIMIT: hugging_face,
    "Hugging Face generate inside CAA.on": lambda job: hugging_face(job, job.methods["CAA"]),
    OURS: ours,
    "wb.generate, CAA": lambda job: ours(job, job.methods["CAA"]),
    "wb.generate, ConVA": lambda job: ours(job, job.methods["ConVA"]),
    "wb.generate, ConVA at each token": lambda job: ours(job, job.methods["ConVA, token"]),
    "wb.generate, ConVA, trace": lambda job: ours(job, job.methods["ConVA"], return_trace=True),
    "TransformerBridge.generate with hooks": bridge,
    "repeng": repeng,
    "nnsight": nnsight,
}
UNSTEERED = {"Hugging Face generate inside CAA.on": LIMIT, "TransformerBridge.generate with hooks": LIMIT,
             "repeng": LIMIT, "nnsight": LIMIT}  # fmt: skip


# --- measuring ----------------------------------------------------------------------------------------------


def clock(run: Callable[[], Any], cuda: bool) -> tuple[float, float, Any]:
    """Seconds, processor seconds, result."""
    if cuda:
        torch.cuda.synchronize()
    start, used = time.perf_counter(), time.process_time()
    result = run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - used, result


def race(job: Job, rows: int, repeat: int) -> list[dict[str, Any]]:
    prompts, cuda = job.prompts(rows), job.model.device.type == "cuda"
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name, make in COMPETITORS.items():
        try:
            runs[name] = make(job)
            runs[name](prompts)
        except Missing as problem:
            notes[name] = str(problem)
            runs.pop(name, None)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    wrote: dict[str, int] = {}
    for turn in range(repeat):
        for name, run in runs.items():
            took, used, wrote[name] = clock(partial(run, prompts), cuda)
            seconds[name].append(took)
            processor[name].append(used)
            print(f"batch {rows}, round {turn + 1} of {repeat}: {name} {took:.2f} s", file=sys.stderr, flush=True)
    table = []
    for name in COMPETITORS:
        line: dict[str, Any] = {"batch": rows, "generate": name, "note": notes.get(name, "")}
        if name in runs:
            ratios = [limit / own for limit, own in zip(seconds[LIMIT], seconds[name], strict=True)]
            spent = seconds if cuda else processor  # the processor's other users do not count then
            against = spent[UNSTEERED.get(name, OURS)]
            more = median(own - plain for own, plain in zip(spent[name], against, strict=True))
            line |= {"tokens_per_s": wrote[name] / median(seconds[name]), "of_limit": median(ratios)}
            line |= {"lowest": min(ratios), "highest": max(ratios)}
            line |= {"cpu_of_limit": median(a / b for a, b in zip(processor[LIMIT], processor[name], strict=True))}
            if name not in (LIMIT, OURS):
                line |= {"ms_per_layer": 1e3 * more / job.tokens / len(job.layers)}
            line |= {"seconds": seconds[name]}
        table.append(line)
    return table


def layer_by_layer(job: Job, steer: Intervention, ids: torch.Tensor, mask: torch.Tensor, stop: bool = False) -> None:
    """eps as the released code finds it: a pass for each layer, with all earlier shifts added; stop: only up to it."""
    model, shifts = job.model, {}

    class Read(Exception):
        pass

    def hook(layer: int, last: int) -> Any:
        def edit(_module: Any, _args: Any, output: Any) -> Any:
            if layer == last:
                shifts[layer] = steer.shift(layer, residual(output)[:, -1].float())[:, None].to(model.dtype)
                if stop:
                    raise Read
            return residual(output) + shifts[layer]

        return edit

    for last in steer.layers:
        handles = [model.blocks[k].register_forward_hook(hook(k, last)) for k in steer.layers if k <= last]
        try:
            model.twin(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        except Read:
            pass
        finally:
            for handle in handles:
                handle.remove()


def prefill(job: Job, steer: Intervention, ids: torch.Tensor, mask: torch.Tensor) -> None:
    with steer.on(job.model):
        job.model.twin(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)


def eps(job: Job, rows: int, repeat: int) -> list[dict[str, Any]]:
    ids, mask = job.model.pad(job.model.encode(job.prompts(rows)))
    steer, cuda = job.methods["ConVA"], job.model.device.type == "cuda"
    ways = {"one prefill": prefill, "one pass per layer": layer_by_layer,
            "one pass per layer, stopped there": partial(layer_by_layer, stop=True)}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat + 1):  # the first is not counted
        for name, way in ways.items():
            seconds[name].append(clock(partial(way, job, steer, ids, mask), cuda)[0 if cuda else 1])
    times = {name: median(own[1:]) for name, own in seconds.items()}
    return [{"batch": rows, "eps of all layers": name, "ms": 1e3 * took, "layers": len(job.layers),
             "faster": times["one pass per layer"] / took} for name, took in times.items()]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Steered generation against peers; see the docstring of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", default="100m", help=f"a random-initialised Llama: {', '.join(SHAPES)}")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each answer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", help="a folder with further packages, as of pip install --target")
    parser.add_argument("--out", type=Path, default=RESULTS / "steering.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        place = Path(folder) / f"llama-{args.shape}"
        model = random_llama(args.shape, place, args.device) or wb.load_model(place, device="cpu", dtype="float32")
        vars(model)["eos_ids"] = set()  # every row writes all its tokens
        job = Job(model, args.tokens, args.peers)
        batches = [int(rows) for rows in args.batches.split(",")]
        speed = [line for rows in batches for line in race(job, rows, args.repeat)]
        found = [line for rows in batches for line in eps(job, rows, args.repeat)]
        settings = {"layers": job.layers, "tokens": args.tokens, "prompt": PROMPT, "repeat": args.repeat,
                    "parameters": sum(p.numel() for p in model.twin.parameters())}  # fmt: skip
    report(args, f"{args.device}, {args.shape}", settings, speed)
    report(args, f"{args.device}, {args.shape}, eps", settings, found)


if __name__ == "__main__":
    main()
