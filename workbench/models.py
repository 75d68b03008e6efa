"""Load a model once, to look at and to speak with.

A `Model` holds one set of weights twice: as a `TransformerBridge` (TransformerLens: every hook has its name;
raw weights, never `enable_compatibility_mode`) and as an ordinary Hugging Face model, the *twin*, whose
parameters are the same tensors. The twin generates and is captured from at plain Hugging Face speed; a check
at load proves that both agree.
"""

import contextlib
import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import TOLERANCE, WORLDS, check_folder, choose, dtype_name, find, told
from .errors import WorkbenchError
from .prompts import published_instruction
from .values import check_value

Prompt = str | Sequence[Mapping[str, str]]
"""One question, or a chat: turns {"role", "content"}, the last one the user's."""
Instruction = str | Sequence[str | None] | None
"""What stands before the questions: one text for all, one for each, or nothing."""
ENGINES = ("huggingface", "transformer-lens")
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
    source: the arguments with which `load_model` loads it again, on another machine too; not for provenance, since
        it names the folder.
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
    source: dict[str, Any] = field(default_factory=dict)

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

    def second_norm(self, layer: int) -> nn.Module:
        """The twin's module in one layer whose input is `blocks.l.hook_resid_mid`, the residual between its halves.

        Raises WorkbenchError for an unknown layer, and for parallel blocks, which have no such place.
        """
        (layer,) = self.check_layers([layer])
        alias = self.bridge.blocks[layer].hook_aliases.get("hook_resid_mid")
        if alias is None:
            raise WorkbenchError(f"resid_mid of layer {layer} of {self.name} was asked for.",
                                 found="attention and MLP side by side, with nothing between them",
                                 allowed="resid_pre or resid_post")
        part = self.bridge.adapter.component_mapping["blocks"].submodules[alias.split(".")[0]]
        return self.blocks[layer].get_submodule(part.name)

    def check_layers(self, layers: Iterable[int] | None) -> list[int]:
        """The layers as a list of ints (None: all). WorkbenchError for an unknown one; -1 is unknown too."""
        chosen = list(range(self.n_layers)) if layers is None else [int(layer) for layer in layers]
        unknown = [layer for layer in chosen if not 0 <= layer < self.n_layers]
        if unknown or not chosen:
            raise WorkbenchError(f"Layers {chosen} of {self.name} were asked for.",
                                 found=f"unknown: {unknown}" if unknown else "no layer at all",
                                 allowed=f"0 to {self.n_layers - 1}")
        return chosen

    def render(self, prompts: Iterable[Prompt], instruction: Instruction = None) -> list[str]:
        """Prompts as the model's chat template writes them, up to where its answer starts.

        A prompt is one question, or a chat whose last turn is the user's. The instruction, one for all or one for
        each, stands before what is asked last. A model without template reads raw text, and no chat of several turns.
        """
        chats = _all_instructed(prompts, instruction)
        if not self.has_chat_template:
            if not all(isinstance(chat, str) for chat in chats):
                raise WorkbenchError(f"A chat with {self.name} was asked for.", found="a model without chat template")
            return [str(chat) for chat in chats]
        write = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        return [str(write([{"role": "user", "content": c}] if isinstance(c, str) else c)) for c in chats]

    def random_twin(self, seed: int = 0) -> "Model":
        """The same architecture and tokenizer with the weights that a training would start from.

        What a probe reads in it, the architecture and the words give, and not what the model has learnt.
        """
        return load_model(**{**self.source, "random_weights": seed})

    def encode(
        self, texts: Iterable[Prompt], chat: bool = False, instruction: Instruction = None
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
            texts = _all_instructed(texts, instruction)
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
            "dtype": dtype_name(self.dtype),
            "device": self.device.type,
            "weights": "raw",
            "template": hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else "",
            **{library: version(library) for library in ("torch", "transformers", "transformer-lens")},
        }


def question(prompt: Prompt) -> str:
    """What a prompt asks: itself, or the content of a chat's last turn. WorkbenchError for anything else."""
    if isinstance(prompt, str):
        return prompt
    try:
        turns = [(turn["role"], turn["content"]) for turn in prompt]
    except (TypeError, KeyError):
        turns = []
    if not turns or turns[-1][0] != "user" or not all(isinstance(part, str) for turn in turns for part in turn):
        raise WorkbenchError("An answer to a chat was asked for.", found=repr(prompt)[:80],
                             allowed="turns {'role': ..., 'content': ...}, both texts, the last one the user's")
    return turns[-1][1]


def instructed(prompt: Prompt, instruction: str | None) -> Prompt:
    """The prompt with an instruction, if there is one, before what it asks last."""
    asked = question(prompt)
    told = f"{instruction} {asked}" if instruction else asked
    return told if isinstance(prompt, str) else [*prompt[:-1], {"role": "user", "content": told}]


def _all_instructed(prompts: Iterable[Prompt], instruction: Instruction) -> list[Prompt]:
    prompts = list(prompts)
    each = [instruction] * len(prompts) if instruction is None or isinstance(instruction, str) else list(instruction)
    if len(each) != len(prompts):
        raise WorkbenchError(f"{len(prompts)} prompts with an instruction each were asked for.",
                             found=f"{len(each)} instructions", allowed="one for all, or one for each")
    return [instructed(prompt, told) for prompt, told in zip(prompts, each, strict=True)]


def residual(output: Any) -> torch.Tensor:
    """The residual stream in what a decoder block returned: the tensor itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def load_model(
    name: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    engine: str = "huggingface", revision: str | None = None, n_devices: int | None = None,
    device_map: str | dict[str, Any] | None = None, random_weights: int | None = None,
) -> Model:
    """Load a model by name: "embedded:circle|scrambled|confirm", a local folder, or a Hugging Face name.

    device: None takes CUDA where there is one, else the CPU.
    dtype: "float32", "float16", "bfloat16"; None takes float32 for models small enough to afford it, and the
        checkpoint's own beyond. `Model.reason` says why.
    engine: who generates, "huggingface" (the twin) or "transformer-lens" (the bridge).
    revision: branch, tag or commit of a Hugging Face name.
    n_devices, device_map: spread a model that is larger than one GPU, instead of `device`: over so many GPUs, or as
        Hugging Face's device maps say; TransformerLens resolves both. Tried with every part on the CPU only.
    random_weights: a seed: the architecture as it is before any training, no weights are read; see `random_twin`.

    Only safetensors weights are read, and no code from the model's folder is run. Raises WorkbenchError, with
    one clear sentence each, for whatever cannot be loaded, and when bridge and twin disagree.
    """
    if engine not in ENGINES:
        raise WorkbenchError(f"Engine {engine!r} was asked for.", allowed=", ".join(map(repr, ENGINES)))
    folder, shown, world, revision = find(name, revision)
    check_folder(folder, shown)
    spread = _spread(n_devices, device_map, device)
    place, kind, reason = choose(folder, device, dtype)
    if random_weights is None:
        loaded, tokenizer = _read(folder, shown, kind, spread)
    else:
        loaded, tokenizer = _read(folder, shown, kind, spread := {}, random_weights)
        shown = f"{shown}, random weights {random_weights}"
    if spread:
        place = loaded.get_input_embeddings().weight.device
        reason = f"spread over {', '.join(sorted({str(p.device) for p in loaded.parameters()}))}; {reason}"
    else:
        loaded.to(place)
    loaded.eval().requires_grad_(False)
    # The memo makes the copy keep the very same parameters; it must come before bridging changes the modules.
    twin = copy.deepcopy(loaded, {id(parameter): parameter for parameter in loaded.parameters()})
    bridge = _bridge(loaded, folder, shown, tokenizer)
    if getattr(twin.config, "workbench_world", None) in WORLDS:  # a checkpoint in training, outside its place
        world = world or twin.config.workbench_world
    where = {"n_devices": n_devices, "device_map": device_map} if spread else {"device": str(place)}
    source = {"name": name if world or revision else str(folder.resolve()), "dtype": dtype_name(kind),
              "engine": engine, "revision": revision, "random_weights": random_weights, **where}
    model = Model(shown, bridge, twin, tokenizer, place, kind, reason, engine, world, revision, source=source)
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
            allowed=f"{allowed:.0e} in {dtype_name(model.dtype)}",
            do="Try dtype='float32'; if they still differ, TransformerLens misreads this architecture.")
    return {"logits": words, "resid_post": worst, "tolerance": allowed}


def _spread(n_devices: int | None, device_map: Any, device: Any) -> dict[str, Any]:
    """What `from_pretrained` is told to spread a model over devices; empty where it goes whole to one."""
    from transformer_lens.utilities.multi_gpu import resolve_device_map

    with told(f"A model on n_devices={n_devices}, device_map={device_map!r}, device={device!r} was asked for.",
              "one device, or a device map without disk, or as many devices as there are GPUs"):
        resolved, memory = resolve_device_map(n_devices, device_map, device)
        if {"disk", "meta"} & set(resolved.values() if isinstance(resolved, dict) else ()):
            raise ValueError("parts on disk, where hooks and shared weights cannot reach them")
    return {} if resolved is None else {"device_map": resolved, **({"max_memory": memory} if memory else {})}


def _read(
    folder: Path, shown: str, kind: torch.dtype, spread: dict[str, Any], random_weights: int | None = None
) -> tuple[Any, Any]:
    """Hugging Face model, on the CPU unless spread, and tokenizer of a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = f"The model {shown!r} was asked for."
    do = "Check that config.json and weights are whole and match."
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with told(asked, "a causal language model without code of its own", "Check config.json."):
        config = AutoConfig.from_pretrained(str(folder), **safe)
    with told(f"The tokenizer of {shown!r} was asked for.", "tokenizer.json or other tokenizer files"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
    if random_weights is not None:
        with told(asked, "a causal language model"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(random_weights)  # the CPU's alone: weights are drawn there
            return AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation="eager"), tokenizer
    with told(asked, "a causal language model", do):
        # Eager as in the bridge: sdpa differs from it by up to 1e-2 in bfloat16.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=kind, attn_implementation="eager", use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **spread, **safe)
    model, report = loaded
    # transformers fills what is missing or of another shape with random numbers, and goes on
    if bad := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        raise WorkbenchError(asked, f"{len(bad)} weights missing or misshapen: {', '.join(bad[:3])}", do=do)
    return model, tokenizer


def _bridge(model: Any, folder: Path, shown: str, tokenizer: Any) -> Any:
    """TransformerBridge round a loaded model, whose modules it changes in place."""
    asked = f"{shown!r} ({type(model).__name__}) was to be read by TransformerLens."
    # It makes fused projections anew, at random, before it copies the weights: nobody's draws may change by that.
    here = [model.device] if model.device.type == "cuda" else []
    with told(asked, "the architectures that TransformerLens supports"), torch.random.fork_rng(here):
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=copy.deepcopy(tokenizer),
            device=str(model.device), dtype=model.dtype)
