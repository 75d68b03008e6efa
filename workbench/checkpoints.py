"""Find a model's files, check them, and choose device and dtype before any weight is read."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import WorkbenchError
from .prompts import data_path

WORLDS = ("circle", "scrambled", "confirm")
# Largest relative difference of bridge and twin that the check at load accepts.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Asked of a Hugging Face name, from its top folder alone: configuration, tokenizer (*.model: sentencepiece, as LLaMA's
# tokenizer.model and DeBERTa-v3's spm.model), safetensors; nothing that is pickled, and no code.
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors")
FOLDER = "a folder with config.json, model.safetensors and tokenizer files"


def find(name: str | Path, revision: str | None) -> tuple[Path, str, str | None, str | None]:
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

    do = "Names are owner/name, as on huggingface.co; a local folder and 'embedded:circle' need no network."
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*FILES], ignore_patterns="*/*"))
    except errors.GatedRepoError:
        found, do = "a licence to accept first", f"Accept it on huggingface.co/{name} and set HF_TOKEN."
    except errors.RevisionNotFoundError:
        found, do = f"the model, but no revision {revision!r} of it", None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        found = "no public model and no local folder of that name"
    except Exception as problem:  # the client's network errors changed with its releases: all mean the same
        found = f"no local folder of that name, and no way to Hugging Face ({type(problem).__name__})"
    raise WorkbenchError(f"The Hugging Face model {name!r} was asked for.", found=found, do=do)


def check_folder(folder: Path, shown: str) -> None:
    """WorkbenchError unless the folder holds a configuration and safetensors weights of its own."""
    index = folder / "model.safetensors.index.json"
    asked = f"The model {shown!r} was asked for."
    if not (folder / "config.json").is_file():
        raise WorkbenchError(asked, found="no config.json in its folder", allowed=FOLDER)
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        with told(asked, f"a {index.name} that names its shards"):
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


def choose(folder: Path, device: Any, dtype: Any) -> tuple[torch.device, torch.dtype, str]:
    """Device and dtype with the reason for each, decided once, before any weight is read."""
    cuda = torch.cuda.is_available()
    try:
        place = torch.device(device or ("cuda" if cuda else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as problem:
        raise WorkbenchError(f"Device {str(device)!r} was asked for.", found=first_line(problem),
                             allowed="'cpu'" + ", 'cuda'" * cuda) from None
    why = f"{place} ({'as asked' if device else 'a GPU is there' if cuda else 'no CUDA GPU'})"
    kinds = {dtype_name(kind): kind for kind in TOLERANCE}
    if dtype is not None:
        if dtype_name(dtype) not in kinds:
            raise WorkbenchError(f"dtype {dtype_name(dtype)!r} was asked for.", allowed=", ".join(kinds))
        return place, kinds[dtype_name(dtype)], f"{why}, {dtype_name(dtype)} (as asked)"
    with told("A model's config.json was to be read.", "a JSON object"):
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


@contextlib.contextmanager
def told(asked: str, allowed: str, do: str | None = None) -> Iterator[None]:
    """Without transformers' loading bars and advice; whatever fails inside becomes one WorkbenchError."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as problem:
        raise WorkbenchError(asked, first_line(problem), allowed, do) from problem
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(problem: BaseException) -> str:
    """First line of another library's error, with the next where it only announces it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
