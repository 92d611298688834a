"""Have MLPerf's LoadGen decide what is inferred and when: its queries wait in one queue for all instances.

Each instance takes from the queue what it infers as one step: the samples of a query together (SingleStream,
MultiStream), or up to a batch of those that wait (Server, Offline). Its timed loop is that of every run; LoadGen has
its own clock, and its own account of it.
"""

import array
import re
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError

TOGETHER = ("SingleStream", "MultiStream")
"""The scenarios whose queries are inferred as they are."""
MODEL = "resnet50"
"""The name under which LoadGen's own settings have the rules for image classification."""
LOADGEN = "loadgen"
"""The directory of a worker's logs that LoadGen's are in."""
STEP_IMAGES = "step_images.npy"
"""The file of an instance's logs that says how many images each of its steps had."""
MULTI_STREAM = 8
"""How many samples a query of MultiStream has, by the rules."""
SUMMARY, ANSWERS = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
SAMPLES = 1024
"""How many samples LoadGen knows of, the rules' number for image classification; images repeat for them."""
LOADED = 256
"""How many of the images whose answers count are decoded at a time, before LoadGen asks for them."""
SHARE = 0.5
"""What of the time of a sample that was measured is to be expected, so that enough queries are made beforehand."""
MARGIN = 1.2
"""What more than was measured Offline is to expect, so that its query lasts at least as long as asked for."""


@dataclass(frozen=True)
class LoadGenSpec:
    """How LoadGen is run.

    `library`: the directory that it is imported from. `scenario`: as it names them. `target_rate`: of queries a second
    (Server) or samples a second (Offline); 0 for none. `min_duration_ms`: 0 for the rules' own. `config`: a user.conf,
    or empty. `accuracy`: whether each sample is asked for once, and its answer logged, and nothing is timed. `audit`:
    the text of an audit.config, whose settings are above all others; empty without.
    """

    library: str
    scenario: str
    target_rate: float
    min_duration_ms: int
    config: str
    accuracy: bool = False
    audit: str = ""

    @property
    def has_target(self) -> bool:
        """Whether it is said, by itself or a user.conf, what rate or latency is to be expected."""
        return bool(self.target_rate) or _has_target(read_config(self.config), self.scenario)


def read_config(path: str) -> str:
    """Return the text of a user.conf; empty without one."""
    return Path(path).read_text(encoding="utf-8", errors="replace") if path else ""


class Samples:
    """The samples that LoadGen knows of: images that are in memory, repeated, or files, decoded when it wants them.

    `decode`: returns the images of files, in their order.
    """

    def __init__(
        self,
        images: np.ndarray,
        files: Sequence[str] = (),
        decode: Callable[[list[str]], Iterator[np.ndarray]] | None = None,
    ) -> None:
        self._images, self._files, self._decode = images, files, decode
        self._loaded: dict[int, np.ndarray] = {}
        self.count, self.at_once = (len(files), min(len(files), LOADED)) if files else (SAMPLES, SAMPLES)

    def load(self, indices: Sequence[int]) -> None:
        """Decode what is about to be asked for, where there are files."""
        if self._decode is not None:
            wanted = list(indices)
            images = self._decode([self._files[index] for index in wanted])
            self._loaded = {index: np.array(image) for index, image in zip(wanted, images, strict=True)}

    def gather(self, indices: list[int], buffer: np.ndarray) -> np.ndarray:
        """Copy the images of some samples that are loaded into a buffer for more of them; return that part of it."""
        batch = buffer[: len(indices)]
        if self._decode is not None:
            return np.stack([self._loaded[index] for index in indices], out=batch)
        wanted = [index % len(self._images) for index in indices]
        return np.take(self._images, wanted, axis=0, out=batch, mode="clip")  # other modes copy twice


def _has_target(config: str, scenario: str) -> bool:
    key = "latency" if scenario in TOGETHER else "qps"  # Server's target_latency is a bound
    return bool(re.search(rf"^\s*(\*|{MODEL})\.(\*|{scenario})\.target_{key}\s*=", config, re.MULTILINE))


class Queries:
    """LoadGen's queries, for some instances to answer.

    `samples`: what is asked for. `answered`: the images of each instance's steps. `outputs`: where accuracy is what
    counts, what `keep` made of each sample's output.
    """

    def __init__(
        self,
        spec: LoadGenSpec,
        samples: Samples,
        batch_size: int,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._spec, self.samples, self._batch_size, self._keep = spec, samples, batch_size, keep
        self.outputs: dict[int, np.ndarray] = {}
        self._waiting: deque[list[Any]] = deque()
        self._ready, self._ended = threading.Condition(), False
        self._under_way: dict[int, list[Any]] = {}
        self.answered: defaultdict[int, list[int]] = defaultdict(list)
        self._rates: list[float] = []
        if spec.library not in sys.path:
            sys.path.append(spec.library)
        import mlperf_loadgen

        self._api: Any = mlperf_loadgen

    def batches(self, index: int, buffer: np.ndarray) -> Iterator[np.ndarray]:
        """Yield what an instance is to infer, in a buffer of its own, until LoadGen has what it wants."""
        while (samples := self._take()) is not None:
            self._under_way[index] = samples
            yield self.samples.gather([sample.index for sample in samples], buffer)

    def _take(self) -> list[Any] | None:
        with self._ready:
            while not self._waiting and not self._ended:
                self._ready.wait()
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            if self._spec.scenario in TOGETHER:
                return taken
            while self._waiting and len(taken) + len(self._waiting[0]) <= self._batch_size:
                taken = taken + self._waiting.popleft()
            return taken

    def complete(self, index: int, outputs: np.ndarray) -> None:
        """Tell LoadGen the answers of the batch that an instance has inferred: the class of each image."""
        best = array.array("q", outputs.argmax(axis=1).tolist())
        address, size = best.buffer_info()[0], best.itemsize
        samples = self._under_way.pop(index)
        if self._keep is not None:
            self.outputs |= {sample.index: row for sample, row in zip(samples, self._keep(outputs), strict=True)}
        answers = [
            self._api.QuerySampleResponse(sample.id, address + at * size, size) for at, sample in enumerate(samples)
        ]
        self._api.QuerySamplesComplete(answers)
        self.answered[index].append(len(answers))

    def sizes(self) -> Sequence[int]:
        """Return how many images may be inferred as one step."""
        whole = {"SingleStream": [1], "MultiStream": [MULTI_STREAM], "Offline": [self._batch_size]}
        return whole.get(self._spec.scenario, range(1, self._batch_size + 1))

    def expect(self, images_per_s: float) -> None:
        """Be told what an instance does while it warms up, of which Offline's query is made long enough."""
        with self._ready:
            self._rates.append(images_per_s)
            self._ready.notify_all()

    def _issue(self, samples: Sequence[Any]) -> None:
        size = len(samples) if self._spec.scenario in TOGETHER else self._batch_size
        parts = [list(samples[at : at + size]) for at in range(0, len(samples), size)]
        with self._ready:
            self._waiting.extend(parts)
            self._ready.notify(len(parts))

    def _settings(self, logs: Path) -> Any:
        """Return the rules' settings for image classification, with the user's own above them, which are kept."""
        spec, api, config = self._spec, self._api, logs / "user.conf"
        text = read_config(spec.config)
        config.write_text(text, encoding="utf-8")
        given = _has_target(text, spec.scenario)
        settings = api.TestSettings()
        settings.scenario = getattr(api.TestScenario, spec.scenario)
        settings.mode = api.TestMode.AccuracyOnly if spec.accuracy else api.TestMode.PerformanceOnly
        if settings.FromConfig(str(config), MODEL, spec.scenario):
            raise CnnbenchError(
                f"{spec.config}: LoadGen cannot read it; needed lines `{MODEL}.{spec.scenario}.key = n`"
            )
        if spec.min_duration_ms:
            settings.min_duration_ms = spec.min_duration_ms
            settings.min_query_count = 1
        if spec.scenario == "Server" and (spec.target_rate or (spec.accuracy and not given)):
            settings.server_target_qps = spec.target_rate or SHARE * sum(self._rates)
        if spec.scenario in TOGETHER and not given:  # so that enough queries are made for the time
            prefix = "single" if spec.scenario == "SingleStream" else "multi"
            setattr(settings, f"{prefix}_stream_expected_latency_ns", int(SHARE * 1e9 / max(self._rates)))
        if spec.scenario == "Offline" and (spec.target_rate or not given):
            settings.offline_expected_qps = spec.target_rate or MARGIN * sum(self._rates)
        return settings

    def run(self, logs: Path, instances: int) -> None:
        """Run LoadGen to its end, once so many instances have told what they do, with its logs in a directory.

        Raises CnnbenchError for settings that are none.
        """
        with self._ready:
            self._ready.wait_for(lambda: len(self._rates) == instances)
        api, output, log = self._api, self._api.LogOutputSettings(), self._api.LogSettings()
        output.outdir, output.copy_summary_to_stdout = str(logs), False
        log.log_output, log.enable_trace = output, False
        samples, audit = self.samples, logs / "audit.config"
        if self._spec.audit:
            audit.write_text(self._spec.audit, encoding="utf-8")
        library = api.ConstructQSL(samples.count, samples.at_once, samples.load, lambda _indices: None)
        system = api.ConstructSUT(self._issue, lambda: None)
        try:
            api.StartTestWithLogSettings(system, library, self._settings(logs), log, str(audit))
        finally:
            with self._ready:
                self._ended = True
                self._ready.notify_all()
            api.DestroySUT(system)
            api.DestroyQSL(library)
