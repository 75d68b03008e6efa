"""Settings and models shared by all tests."""

import functools
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network

import pytest
import tiny
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--part", choices=("quick", "browser"), help="tests without a browser, or those in one")


def pytest_collection_modifyitems(config, items):
    """Browser tests run last: the quick ones tell first what is wrong."""
    sides = {"quick": [], "browser": []}
    for item in items:
        sides["browser" if item.get_closest_marker("browser") else "quick"].append(item)
    part = config.getoption("--part")
    items[:] = sides[part] if part else sides["quick"] + sides["browser"]
    if part:
        config.hook.pytest_deselected(items=sides["browser" if part == "quick" else "quick"])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Function: family -> Hugging Face folder of its tiny model. Read only; copy before changing."""
    root = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family="llama": tiny.make(root / family, family))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """Function: family -> its loaded tiny model, one per session: leave no hook and no change on it."""
    from workbench.models import load_model

    return functools.cache(lambda family="llama": load_model(tiny_folder(family)))


@pytest.fixture(scope="session")
def reference():
    """Folder of the outside reference material (WORKBENCH_REFERENCE)."""
    folder = os.environ.get("WORKBENCH_REFERENCE")
    if not folder:
        pytest.skip("WORKBENCH_REFERENCE is not set: no model from outside the project to test on")
    return Path(folder).expanduser().resolve()


@pytest.fixture(scope="session")
def craftgpt(reference):
    """CraftGPT: a small GPT-2 trained by others, 64 tokens of context, no BOS, a template of its own."""
    from workbench.models import load_model

    return load_model(reference / "models" / "craftgpt")


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where a shell started the tests in the background and had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
