"""Run a network's stages at once, each on cores of its own, with parts of a batch going from one to the next."""

import os
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnbench.engines.pytorch.classifier import Classifier

KEPT = 1000
"""How many of a stage's last times are kept."""


class Pipeline:
    """Stages in threads of their own, pinned to shares of the cores that the calling thread may use.

    Called with a batch (N x size x size x 3), it hands parts of `size` images to the first stage, so that
    every stage has a part to work at, and returns the probabilities of all. A batch of fewer parts than stages leaves
    some of them idle.
    """

    def __init__(
        self, classifier: Classifier, stages: Sequence[Callable[[Any], Any]], splits: Sequence[str], size: int
    ) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        ends = zip(("the input", *splits), (*splits, "the end"), strict=True)
        self._names = [f"{first} to {last}" for first, last in ends]
        self._classifier, self._size = classifier, size
        self._queues: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(len(stages) + 1)]
        self._times_s: list[deque[float]] = [deque(maxlen=KEPT) for _ in stages]
        self._threads = []
        for number, stage in enumerate(stages):
            share = cpus[number * len(cpus) // len(stages) : (number + 1) * len(cpus) // len(stages)]
            self._threads.append(threading.Thread(target=self._work, args=(number, stage, share), daemon=True))
            self._threads[-1].start()

    def _work(self, number: int, stage: Callable[[Any], Any], cpus: list[int]) -> None:
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(len(cpus))
        with torch.no_grad():
            while (part := self._queues[number].get()) is not None:
                began_s = time.monotonic()
                try:
                    if not isinstance(part, BaseException):
                        part = stage(part)
                except BaseException as error:  # noqa: BLE001 - raised again where the batch is waited for
                    part = error
                self._times_s[number].append(time.monotonic() - began_s)
                self._queues[number + 1].put(part)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (float32, N x classes) of a batch."""
        parts = self._classifier.take(images).split(self._size)
        for part in parts:
            self._queues[0].put(part)
        answers = [self._queues[-1].get() for _ in parts]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return torch.softmax(torch.cat(answers).float(), 1)

    def close(self) -> None:
        """End the threads."""
        for waiting, thread in zip(self._queues, self._threads, strict=False):
            waiting.put(None)
            thread.join()

    def describe(self) -> dict[str, str]:
        """Return the median time of each stage for a part."""
        return {
            f"stage {number}": f"{name}, {statistics.median(times) * 1000:.2f} ms for {self._size} images"
            for number, (name, times) in enumerate(zip(self._names, self._times_s, strict=True), start=1)
            if times
        }
