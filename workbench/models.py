"""Load a model once, to look at and to speak with.

A `Model` holds one set of weights twice: as a `TransformerBridge` (TransformerLens: every hook has its name;
raw weights, never `enable_compatibility_mode`) and as an ordinary Hugging Face model, the *twin*, whose
parameters are the same tensors. The twin generates and is captured from at plain Hugging Face speed; a check
at load proves that both agree.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import WorkbenchError
from .prompts import data_path, published_instruction
from .values import check_value

WORLDS = ("circle", "scrambled", "confirm")
ENGINES = ("huggingface", "transformer-lens")
# Largest relative difference of bridge and twin that the check at load accepts.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
FOLDER = "a folder with config.json, model.safetensors and tokenizer files"
HASH_WHOLE = 1 << 28  # bytes up to which the fingerprint reads everything


@dataclass(eq=False, repr=False)
class Model:
    """A causal language model, ready to be read, steered and spoken with. Made by `load_model`.

    bridge: the TransformerBridge, raw weights. It has a tokenizer of its own with TransformerLens' rules (it
        may prepend a BOS where the model has none): give the bridge the ids of `encode`, not text.
    twin: Hugging Face model over the same parameter tensors, not bridged; eager attention, no gradients.
    tokenizer: the model's own, as Hugging Face loads it.
    world: "circle", "scrambled" or "confirm" for the embedded models, None for every other.
    blocks: the twin's decoder blocks; the output of block l is `blocks.l.hook_resid_post`.
    bos_id: the BOS with which the tokenizer begins every text, None if it writes none.
    context: longest text in tokens. reason: of device and dtype. agreement: what the check at load measured.
    """

    name: str
    bridge: Any
    twin: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    reason: str
    engine: str = "huggingface"
    world: str | None = None
    revision: str | None = None
    agreement: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.active: list[Any] = []  # the interventions that are on, in their order
        path = self.bridge.adapter.component_mapping["blocks"].name  # where this architecture keeps its blocks
        self.blocks: list[nn.Module] = list(self.twin.get_submodule(path).children())
        self.n_layers, self.d_model = len(self.blocks), int(self.bridge.cfg.d_model)
        declared = getattr(self.twin.config.get_text_config(), "max_position_embeddings", None)
        self.context = int(declared or self.bridge.cfg.n_ctx)
        whole, bare = (self.tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
        bos = self.tokenizer.bos_token_id
        self.bos_id = bos if len(whole) > len(bare) and whole[0] == bos else None
        self.has_chat_template = self.tokenizer.chat_template is not None

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers, d_model {self.d_model}, context {self.context}"
        return f"Model({self.name!r}: {shape}, {self.engine}; {self.reason})"

    @property
    def speaker(self) -> nn.Module:
        """The module that generates, twin or bridged model; both are called as Hugging Face's are."""
        return self.twin if self.engine == "huggingface" else self.bridge.original_model

    def neurons(self, layer: int) -> nn.Module:
        """The twin's down projection in one layer; its input is `blocks.l.mlp.hook_post`, the MLP's neurons.

        Raises WorkbenchError for an unknown layer, and where there is no single one (mixtures of experts).
        """
        (layer,) = self.check_layers([layer])
        try:
            mlp = self.bridge.adapter.component_mapping["blocks"].submodules["mlp"]
            return self.blocks[layer].get_submodule(f"{mlp.name}.{mlp.submodules['out'].name}")
        except (KeyError, AttributeError, TypeError):
            raise WorkbenchError(f"The MLP neurons of layer {layer} of {self.name} were asked for.",
                                 found=f"{type(self.twin).__name__} has no single down projection there",
                                 allowed="models with one dense MLP per layer") from None

    def check_layers(self, layers: Iterable[int] | None) -> list[int]:
        """The layers as a list of ints (None: all). WorkbenchError for an unknown one; -1 is unknown too."""
        chosen = list(range(self.n_layers)) if layers is None else [int(layer) for layer in layers]
        unknown = [layer for layer in chosen if not 0 <= layer < self.n_layers]
        if unknown or not chosen:
            raise WorkbenchError(f"Layers {chosen} of {self.name} were asked for.",
                                 found=f"unknown: {unknown}" if unknown else "no layer at all",
                                 allowed=f"0 to {self.n_layers - 1}")
        return chosen

    def render(self, prompts: Iterable[str], instruction: str | None = None) -> list[str]:
        """Prompts as the model's chat template writes them, up to where its answer starts.

        The instruction stands before the prompt, in the user's turn. A model without template reads raw text.
        """
        turns = [f"{instruction} {prompt}" if instruction else prompt for prompt in prompts]
        if not self.has_chat_template:
            return turns
        write = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        return [str(write([{"role": "user", "content": turn}])) for turn in turns]

    def encode(
        self, texts: Iterable[str], chat: bool = False, instruction: str | None = None
    ) -> list[list[int]]:
        """Token ids of each text, unpadded; `chat=True` renders the chat template first.

        Exactly one BOS where the model uses one, whoever writes it, tokenizer or template; where neither
        does, none. Nothing is appended and nothing cut.
        """
        if isinstance(texts, str):
            raise WorkbenchError("A list of texts was asked for.", found="one string", do="Pass [text].")
        if chat:
            texts = self.render(texts, instruction)
        elif instruction:
            texts = [f"{instruction} {text}" for text in texts]
        # Special tokens by hand: a template that writes its own BOS would be given a second one, and some
        # tokenizers append an EOS, which would be read as the last token.
        rows = [list(self.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        if self.bos_id is not None:
            for row in rows:
                written = next((i for i, token in enumerate(row) if token != self.bos_id), len(row))
                row[:written] = [self.bos_id]
        return rows

    def pad(self, ids: Sequence[Sequence[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask, both (row, position), int64, on the model's device."""
        if side not in ("left", "right"):
            raise WorkbenchError(f"Padding on side {side!r} was asked for.", allowed="'left', 'right'")
        width = max(map(len, ids))
        input_ids = torch.full((len(ids), width), self.pad_id)
        mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
            input_ids[row, where], mask[row, where] = torch.tensor(tokens, dtype=torch.long), 1
        return input_ids.to(self.device), mask.to(self.device)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def check_length(self, ids: Sequence[Sequence[int]], texts: Sequence[str], room: int = 0) -> None:
        """WorkbenchError unless every row holds a token and, with `room` tokens to come, fits the context."""
        for row, (tokens, text) in enumerate(zip(ids, texts, strict=True)):
            shown = repr(text if len(text) <= 60 else text[:60] + " ...")
            if not tokens:
                raise WorkbenchError(f"Text {row}, {shown}, was to be read.", found="no tokens in it")
            if (total := len(tokens) + room) > self.context:
                raise WorkbenchError(
                    f"Text {row}, {shown}, was to be read by {self.name}.",
                    found=f"{total} of {self.context} tokens" + f", {room} of them to come" * bool(room),
                    do="Shorten it or take a model with a longer context: nothing is cut in silence.")

    @cached_property
    def pad_id(self) -> int:
        """Token that fills short rows; always masked."""
        known = (self.tokenizer.pad_token_id, self.twin.config.get_text_config().pad_token_id, *self.eos_ids)
        return next((token for token in known if token is not None), 0)

    @cached_property
    def eos_ids(self) -> set[int]:
        """Tokens that end an answer: of the tokenizer, the configuration and its generation settings."""
        sources = (self.tokenizer, self.twin.config, self.twin.generation_config)
        declared = [getattr(source, "eos_token_id", None) for source in sources]
        return {i for ids in declared for i in (ids if isinstance(ids, list) else [ids]) if i is not None}

    def instruct(self, value: str, level: str = "high") -> str:
        """The instruction that asks for a high (ICA) or low (negative prompt) level of a value.

        The embedded worlds have a sentence of their own; others get ConVA's, with the value's definition.
        """
        value = check_value(value)
        if level not in ("high", "low"):
            raise WorkbenchError(f"Level {level!r} of {value} was asked for.", allowed="'high', 'low'")
        if self.world:
            return f"You have a {level} level of {value}."
        return published_instruction(value, level)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and bytes of the parameters as loaded, so the dtype counts.

        Above 256 MB only 4,096 evenly spaced elements of each tensor are read; the prefix says which it was.
        """
        named = list(self.twin.named_parameters())
        whole = sum(parameter.nbytes for _, parameter in named) <= HASH_WHOLE
        digest = hashlib.sha256()
        for name, parameter in named:
            flat = parameter.detach().reshape(-1)
            sample = flat if whole else flat[:: max(1, flat.numel() // 4096)]
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(sample.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return f"sha256{'' if whole else '-sampled'}:{digest.hexdigest()}"

    @cached_property
    def provenance(self) -> dict[str, str]:
        """What every saved result carries about the model: flat, strings only, no paths."""
        template = self.tokenizer.chat_template
        return {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "revision": self.revision or "",
            "world": self.world or "",
            "dtype": _name(self.dtype),
            "device": self.device.type,
            "weights": "raw",
            "template": hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else "",
            **{library: version(library) for library in ("torch", "transformers", "transformer-lens")},
        }


def residual(output: Any) -> torch.Tensor:
    """The residual stream in what a decoder block returned: the tensor itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def load_model(
    name: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    engine: str = "huggingface", revision: str | None = None,
) -> Model:
    """Load a model by name: "embedded:circle|scrambled|confirm", a local folder, or a Hugging Face name.

    device: None takes CUDA where there is one, else the CPU.
    dtype: "float32", "float16", "bfloat16"; None takes float32 for models small enough to afford it, and the
        checkpoint's own beyond. `Model.reason` says why.
    engine: who generates, "huggingface" (the twin) or "transformer-lens" (the bridge).
    revision: branch, tag or commit of a Hugging Face name.

    Only safetensors weights are read, and no code from the model's folder is run. Raises WorkbenchError, with
    one clear sentence each, for whatever cannot be loaded, and when bridge and twin disagree.
    """
    if engine not in ENGINES:
        raise WorkbenchError(f"Engine {engine!r} was asked for.", allowed=", ".join(map(repr, ENGINES)))
    folder, shown, world, revision = _find(name, revision)
    _check_folder(folder, shown)
    place, kind, reason = _choose(folder, device, dtype)
    loaded, tokenizer = _read(folder, shown, kind)
    loaded.to(place).eval().requires_grad_(False)
    # The memo makes the copy keep the very same parameters; it must come before bridging changes the modules.
    twin = copy.deepcopy(loaded, {id(parameter): parameter for parameter in loaded.parameters()})
    bridge = _bridge(loaded, folder, shown, tokenizer)
    if getattr(twin.config, "workbench_world", None) in WORLDS:  # a checkpoint in training, outside its place
        world = world or twin.config.workbench_world
    model = Model(shown, bridge, twin, tokenizer, place, kind, reason, engine, world, revision)
    model.agreement = self_check(model)
    return model


def self_check(model: Model) -> dict[str, float]:
    """Relative difference of bridge and twin: {"logits": ..., "resid_post": ..., "tolerance": ...}.

    max |bridge - twin| / max |twin| over one row of tokens spread over the vocabulary; resid_post is the
    worst layer's. Raises WorkbenchError when one exceeds the dtype's tolerance or a hook never fired.
    """
    size = model.twin.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, min(12, model.context), device=model.device).long()[None]
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), contextlib.ExitStack() as hooks:
        for block in model.blocks:
            keep = block.register_forward_hook(lambda _module, _inputs, output: seen.append(residual(output)))
            hooks.callback(keep.remove)
        expected = model.twin(ids, use_cache=False).logits
        logits, cache = model.bridge.run_with_cache(ids, names_filter=lambda hook: hook in names)

    def difference(bridged: torch.Tensor | None, plain: torch.Tensor) -> float:
        if bridged is None or bridged.shape != plain.shape:
            return float("inf")
        bridged, plain = bridged.float(), plain.float()
        return float((bridged - plain).abs().max() / plain.abs().max().clamp_min(1e-12))

    kept = dict(cache.items())
    layers = [difference(kept.get(hook), plain) for hook, plain in zip(names, seen, strict=True)]
    words, worst, allowed = difference(logits, expected), max(layers), TOLERANCE[model.dtype]
    if not all(error <= allowed for error in (words, *layers)):  # so written, NaN fails too
        silent = [hook for hook in names if hook not in kept]
        raise WorkbenchError(
            f"{model.name} was to be read by TransformerLens and to speak as its Hugging Face twin.",
            found=f"they differ: logits by {words:.1e}, resid_post by {worst:.1e} (relative)"
            + (f"; never fired: {', '.join(silent)}" if silent else ""),
            allowed=f"{allowed:.0e} in {_name(model.dtype)}",
            do="Try dtype='float32'; if they still differ, TransformerLens misreads this architecture.")
    return {"logits": words, "resid_post": worst, "tolerance": allowed}


def _find(name: str | Path, revision: str | None) -> tuple[Path, str, str | None, str | None]:
    """Folder on disk, name to show, embedded world, commit."""
    path, text, asked = Path(name).expanduser(), str(name), f"The model {str(name)!r} was asked for."
    world = text.removeprefix("embedded:") if text.startswith("embedded:") else None
    if world is None and not path.is_dir():
        if isinstance(name, Path) or text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1:
            raise WorkbenchError(asked, found="no such folder", allowed=FOLDER)
        folder = _download(text, revision)
        return folder, text, None, folder.name
    if revision:
        raise WorkbenchError(asked, found=f"revision {revision!r}, which only Hugging Face names have")
    if world is None:
        return path, path.resolve().name, None, None  # the name travels with results: no paths in it
    if world not in WORLDS:
        raise WorkbenchError(asked, allowed=", ".join(f"embedded:{known}" for known in WORLDS))
    return data_path("embedded", world), text, world, None


def _download(name: str, revision: str | None) -> Path:
    """Folder of a Hugging Face name, from the cache or the network: configuration, tokenizer, safetensors."""
    from huggingface_hub import errors, snapshot_download

    wanted = ["*.json", "*.jinja", "*.txt", "tokenizer*", "model*.safetensors"]
    do = "Names are owner/name, as on huggingface.co; a local folder and 'embedded:circle' need no network."
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns="*/*"))
    except errors.GatedRepoError:
        found, do = "a licence to accept first", f"Accept it on huggingface.co/{name} and set HF_TOKEN."
    except errors.RevisionNotFoundError:
        found, do = f"the model, but no revision {revision!r} of it", None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        found = "no public model and no local folder of that name"
    except Exception as problem:  # the client's network errors changed with its releases: all mean the same
        found = f"no local folder of that name, and no way to Hugging Face ({type(problem).__name__})"
    raise WorkbenchError(f"The Hugging Face model {name!r} was asked for.", found=found, do=do)


def _check_folder(folder: Path, shown: str) -> None:
    """WorkbenchError unless the folder holds a configuration and safetensors weights of its own."""
    index = folder / "model.safetensors.index.json"
    asked = f"The model {shown!r} was asked for."
    if not (folder / "config.json").is_file():
        raise WorkbenchError(asked, found="no config.json in its folder", allowed=FOLDER)
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        with _told(asked, f"a {index.name} that names its shards"):
            shards = {str(shard) for shard in json.loads(index.read_text())["weight_map"].values()}
        # A path that leaves the folder is as wrong as a shard that is not there.
        bad = sorted(name for name in shards if Path(name).name != name or not (folder / name).is_file())
        if bad:
            raise WorkbenchError(asked, found=f"{index.name} names {', '.join(bad[:3])}, not in the folder",
                                 allowed="safetensors files beside the index", do="Download it again.")
    elif pickled := sorted(path.name for path in folder.glob("*.bin")):
        convert = ("from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
                   f"[c.from_pretrained('{folder}').save_pretrained('{folder}-safetensors') for c in (M, T)]")
        raise WorkbenchError(asked, found=f"only {', '.join(pickled[:3])}, which can run code when opened",
                             allowed="safetensors weights",
                             do=f'If you trust it, convert it once: python -c "{convert}"')
    else:
        raise WorkbenchError(asked, found="no model.safetensors in its folder", allowed=FOLDER)


def _choose(folder: Path, device: Any, dtype: Any) -> tuple[torch.device, torch.dtype, str]:
    """Device and dtype with the reason for each, decided once, before any weight is read."""
    cuda = torch.cuda.is_available()
    try:
        place = torch.device(device or ("cuda" if cuda else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as problem:
        raise WorkbenchError(f"Device {str(device)!r} was asked for.", found=_line(problem),
                             allowed="'cpu'" + ", 'cuda'" * cuda) from None
    why = f"{place} ({'as asked' if device else 'a GPU is there' if cuda else 'no CUDA GPU'})"
    kinds = {_name(kind): kind for kind in TOLERANCE}
    if dtype is not None:
        if _name(dtype) not in kinds:
            raise WorkbenchError(f"dtype {_name(dtype)!r} was asked for.", allowed=", ".join(kinds))
        return place, kinds[_name(dtype)], f"{why}, {_name(dtype)} (as asked)"
    with _told("A model's config.json was to be read.", "a JSON object"):
        config = json.loads((folder / "config.json").read_text())
        own = str(config.get("dtype") or config.get("torch_dtype"))
    stored = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    billions = stored / (2 if own in ("float16", "bfloat16") else 4) / 1e9
    limit, note = 1 if place.type == "cuda" else 4, "the checkpoint's own"
    if billions <= limit or own not in kinds or own == "float32":
        return place, torch.float32, f"{why}, float32 (exact; {billions * 1e3:,.1f}M parameters)"
    if own == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        own, note = "float16", "this GPU has no bfloat16"
    return place, kinds[own], f"{why}, {own} ({note}; float32 only up to {limit}G parameters)"


def _read(folder: Path, shown: str, kind: torch.dtype) -> tuple[Any, Any]:
    """Hugging Face model, on the CPU, and tokenizer of a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = f"The model {shown!r} was asked for."
    do = "Check that config.json and weights are whole and match."
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _told(asked, "a causal language model without code of its own", "Check config.json."):
        config = AutoConfig.from_pretrained(str(folder), **safe)
    with _told(f"The tokenizer of {shown!r} was asked for.", "tokenizer.json or other tokenizer files"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
    with _told(asked, "a causal language model", do):
        # Eager as in the bridge: sdpa differs from it by up to 1e-2 in bfloat16.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=kind, attn_implementation="eager", use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **safe)
    model, report = loaded
    # transformers fills what is missing or of another shape with random numbers, and goes on
    if bad := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        raise WorkbenchError(asked, f"{len(bad)} weights missing or misshapen: {', '.join(bad[:3])}", do=do)
    return model, tokenizer


def _bridge(model: Any, folder: Path, shown: str, tokenizer: Any) -> Any:
    """TransformerBridge round a loaded model, whose modules it changes in place."""
    asked = f"{shown!r} ({type(model).__name__}) was to be read by TransformerLens."
    with _told(asked, "the architectures that TransformerLens supports"):
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=copy.deepcopy(tokenizer),
            device=str(model.device), dtype=model.dtype)


@contextlib.contextmanager
def _told(asked: str, allowed: str, do: str | None = None) -> Iterator[None]:
    """Without transformers' loading bars and advice; whatever fails inside becomes one WorkbenchError."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as problem:
        raise WorkbenchError(asked, _line(problem), allowed, do) from problem
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(problem: BaseException) -> str:
    """First line of another library's error, with the next where it only announces it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
