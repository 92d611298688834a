"""Compile a prepared network ahead of time, by AOTInductor, into a file that is run without the network's own code.

`start.py cnnbench.engines.pytorch.export network NETWORK DESTINATION CACHE`: `DESTINATION/asked.json` says how. What
Inductor keeps of its work, among it which kernels it found the fastest, is in CACHE.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.export import Dim

from cnnbench.base.cache import locked
from cnnbench.base.steps import run_step
from cnnbench.engines.exported import STEM, Asked, Tuning, write_export
from cnnbench.engines.pytorch.classifier import DATA_TYPES, Classifier
from cnnbench.engines.pytorch.compiled import PACKAGE, versions
from cnnbench.engines.pytorch.networks import build, fold_norms
from cnnbench.engines.pytorch.weights import load_weights
from cnnbench.inputs.networks import ImageForm, Network


def export(network: Path, destination: Path, cache: Path) -> None:
    """Compile, and write the package."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    warnings.filterwarnings("ignore", category=FutureWarning)  # PyTorch's, of its own deprecated names
    import torch._inductor.config as inductor  # which reads the environment
    from torch._inductor import codecache
    from torch._inductor.select_algorithm import add_feedback_saver

    from cnnbench.engines.pytorch.compiler import write_whole_files

    write_whole_files(cache)
    asked, request = Asked.read(destination), json.loads((network / "network.json").read_bytes())
    torch.set_num_threads(asked.threads)  # so many are written into what is compiled
    module = build(Network(**request["network"]))
    load_weights(module, network / "weights.safetensors")
    fold_norms(module)
    module = module.to(dtype=DATA_TYPES[asked.number_type], memory_format=torch.channels_last)
    classifier, form = Classifier(module, request["normalize_inside"]).eval(), ImageForm(**request["form"])
    least, most = asked.sizes
    data_type = torch.uint8 if form.as_bytes else torch.float32
    images = torch.zeros((most, form.size, form.size, 3), dtype=data_type)
    shapes = ({0: Dim("batch", min=least, max=most)},) if least < most else None
    file = destination / f"{STEM}{PACKAGE}"
    codecache.PersistentCache.update_local_cache = _add_to_local_cache  # type: ignore[method-assign]
    chosen: list[object] = []
    add_feedback_saver(lambda *choice: chosen.append(choice))
    with torch.no_grad(), inductor.patch(freezing=not asked.replaceable, max_autotune=asked.tuned):
        program = torch.export.export(classifier, (images,), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    tried = counters["inductor"]["select_algorithm_autotune"]
    tuning = Tuning(chosen=len(chosen), tried=tried) if asked.tuned else None
    weights = (
        {name: value.detach().float().numpy() for name, value in classifier.named_parameters()}
        if asked.replaceable
        else {}
    )
    write_export(file, "aotinductor", asked, versions(), tuning, weights)


def _add_to_local_cache(own: Any, found: dict[str, Any]) -> None:
    """Add what trials have found to Inductor's cache of it, which other processes may have added to meanwhile.

    Inductor itself writes what it has read some seconds before, and that is lost then.
    """
    path: Path = own.get_local_cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        text = json.dumps({"system": own.system, "cache": _merge(own.get_local_cache(), found)})
        scratch = path.with_suffix(".new")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merge(old[key], new[key]) for key in old.keys() & new.keys() if isinstance(new[key], dict)}
    return old | new | both


def main(arguments: list[str]) -> int:
    """Export, and return the exit code."""
    steps = {"network": (export, ("network", "destination", "cache"))}
    return run_step("cnnbench.engines.pytorch.export", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
