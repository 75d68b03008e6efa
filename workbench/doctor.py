"""`workbench doctor`: what is installed here and what works, each finding with its remedy; to be pasted into reports.

Imports lie inside the checks, so that it runs where half of the packages are missing, which it then says. A check that
fails is a finding like the others.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

NAME = "value-workbench"
EXTRAS = {
    "app": "`workbench app`, the studio as a page",
    "cluster": "capture on a Ray cluster, stores in S3",
    "eval": "MMLU through lm-eval, judges behind an API, agreement of annotators",
    "export": "GGUF vectors for llama.cpp, figures as files",
    "lora": "LoRA as a method to compare with",
    "dev": "`make test`",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HUB = "https://huggingface.co"
State = Literal["good", "note", "bad"]


class Finding(NamedTuple):
    """What was looked at, what was found there, whether that is well, and what to do about it ("" for nothing).

    state: "bad" keeps the workbench from working; with a "note" something of it is missing.
    """

    about: str
    found: str
    state: State = "good"
    do: str = ""


def examine(network: bool = True) -> Iterator[Finding]:
    """All findings, one by one as they are found. network: whether to ask if the model hub answers."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        python, system, packages, device, memory, jupyter, caches, browser, *[hub] * network, embedded,
    ]  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as problem:  # what is broken is what people come here for
            told = " ".join(f"{type(problem).__name__}: {problem}".split())
            yield Finding(check.__name__, told, "bad", "Make the environment anew (README, Install).")


def python() -> Iterator[Finding]:
    """Python, and the workbench itself."""
    known = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("Python", f"{platform.python_version()} in {home(sys.prefix)}", "good" if known else "bad",
                  "" if known else "Make the environment with Python 3.11, 3.12 or 3.13.")  # fmt: skip
    package = Path(__file__).parent
    where = "installed" if (package / "_data").is_dir() else f"a checkout in {home(package.parent)}"
    yield Finding("workbench", f"{metadata.version(NAME)}, {where}")


def system() -> Iterator[Finding]:
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores")


def packages() -> Iterator[Finding]:
    """What the workbench requires, against what is there; then its extras."""
    from packaging.requirements import Requirement

    needed: dict[str, list[Requirement]] = {"": []}
    for text in metadata.requires(NAME) or []:
        requirement = Requirement(text)
        extras = [extra for extra in EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": extra})]
        for extra in extras if requirement.marker and "extra" in str(requirement.marker) else [""]:
            needed.setdefault(extra, []).append(requirement)
    core = needed.pop("")
    wrong = [told for requirement in core if (told := _wrong(requirement))]
    yield Finding("packages", "; ".join(wrong) or f"all {len(core)} that are required",
                  "bad" if wrong else "good", f"pip install --upgrade {NAME}" if wrong else "")  # fmt: skip
    versions = {name: _version(name) for name in ("torch", "transformers", "transformer-lens", "plotly", "anywidget")}
    yield Finding("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    for extra, requirements in sorted(needed.items()):
        wrong = [told for requirement in requirements if (told := _wrong(requirement))]
        yield Finding(f"extra {extra}", "; ".join(wrong) or "complete", "note" if wrong else "good",
                      f'For {EXTRAS[extra]}: pip install "{NAME}[{extra}]"' if wrong else "")  # fmt: skip


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _wrong(requirement: Any) -> str:
    """What is wrong with a requirement, "" for nothing."""
    found = _version(requirement.name)
    if found == "missing":
        return f"{requirement.name} is missing"
    right = requirement.specifier.contains(found, prereleases=True)
    return "" if right else f"{requirement.name} {found} is not {requirement.specifier}"


def device() -> Iterator[Finding]:
    """Where models run."""
    import torch

    yield Finding("threads", f"torch computes with {torch.get_num_threads()} of {os.cpu_count()} cores")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            yield Finding(f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free")
    elif torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU")
    elif torch.version.cuda or getattr(torch.version, "hip", None):
        yield Finding("GPU", f"torch {torch.__version__} is built for one, but finds none", "note",
                      "See to its driver; without one, the CPU build of torch is gigabytes smaller.")  # fmt: skip
    else:
        yield Finding("GPU", "none; models run on the CPU")


def memory() -> Iterator[Finding]:
    free = free_memory()
    if free is None:
        yield Finding("memory", "this system does not say", "note")
        return
    fits = free * 0.7 / 2 / 1e9  # two bytes a parameter, the rest for activations
    do = "" if free > 2e9 else "Close other kernels: probes want some 2 GB."
    yield Finding("memory", f"{size(free)} free: models of up to {fits:.1f} billion parameters in bfloat16",
                  "note" if do else "good", do)  # fmt: skip


def free_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import psutil  # of the extra "app"
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def jupyter() -> Iterator[Finding]:
    """JupyterLab, the kernel that notebooks get, and what draws panels."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.paths import jupyter_path

    kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    ours = kernel in ("python", "python3") or Path(kernel).resolve() == Path(sys.executable).resolve()
    do = "" if ours else "In the workbench's environment: python -m ipykernel install --sys-prefix"
    yield Finding("JupyterLab", f"{_version('jupyterlab')}, its kernel python3 is {'ours' if ours else home(kernel)}",
                  "bad" if do else "good", do)  # fmt: skip
    wanted = {"ipywidgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}
    missing = [name for name, extension in wanted.items()
               if not any((Path(folder) / extension).is_dir() for folder in jupyter_path("labextensions"))]  # fmt: skip
    yield Finding("panels", f"JupyterLab lacks the extension of {' and '.join(missing)}" if missing
                  else "JupyterLab has what draws them", "bad" if missing else "good",
                  f"pip install --force-reinstall {' '.join(missing)}" if missing else "")  # fmt: skip


def caches() -> Iterator[Finding]:
    """Folders that fill up."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from .app.prepared import cache_folder

    for about, folder in (("studio's cache", cache_folder()), ("models from the hub", Path(HF_HUB_CACHE))):
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        do = "" if writable else "Let it be written, or name another: WORKBENCH_CACHE, HF_HOME."
        do = do or ("" if free > 5e9 else "Make room: `workbench cache` lists stores of activations.")
        yield Finding(about, f"{size(held)} in {home(folder)}, {size(free)} free{'' if writable else ', not writable'}",
                      "note" if do else "good", do)  # fmt: skip


def chromium() -> str | None:
    """Path of Chromium or Chrome, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def browser() -> Iterator[Finding]:
    found = chromium()
    do = "" if found else "For the browser tests and `make pictures` only: apt-get install chromium."
    yield Finding("browser for tests", found or "no Chromium or Chrome", "note" if do else "good", do)


def hub() -> Iterator[Finding]:
    """Does the model hub answer? The embedded models need none."""
    import urllib.error
    import urllib.request

    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    token = f"{'a' if get_token() else 'no'} token for gated models"
    if HF_HUB_OFFLINE:
        yield Finding("model hub", f"not asked: HF_HUB_OFFLINE is set; {token}", "note",
                      "Unset it to download models. The embedded ones, and folders, need no network.")  # fmt: skip
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(HUB, method="HEAD"), timeout=5):
            yield Finding("model hub", f"answers; {token}")
    except urllib.error.HTTPError as answer:
        yield Finding("model hub", f"answers ({answer.code}); {token}")
    except (OSError, ValueError) as problem:
        yield Finding("model hub", f"does not answer ({problem}); {token}", "note",
                      "For downloads only: the embedded models, and folders, need no network.")  # fmt: skip


def embedded() -> Iterator[Finding]:
    """Does a model that ships with the workbench load and speak?"""
    from .generate import generate
    from .models import load_model

    begun = perf_counter()
    model = load_model("embedded:circle")
    (answer,) = generate(model, ["Should Mira help?"], max_new_tokens=8, seed=0)
    yield Finding("embedded:circle", f"loads and says {answer.strip()!r} in {perf_counter() - begun:.1f} s")


def home(path: str | Path) -> str:
    """A path as it may be shown to others: the user's own folder is ~."""
    text = str(path)
    own = str(Path.home())
    return "~" + text[len(own) :] if own != "/" and (text == own or text.startswith(own + os.sep)) else text


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
