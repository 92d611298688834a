"""Ask a Triton Server instead of inferring: what a worker of a client's has in place of an engine's backend.

Runs in the client's environment. It is no engine: what the server answers with is one.
"""

import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import ConfigDict

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.interface import Backend, EngineOptions, LoadSpec

INPUT, OUTPUT = "images", "probabilities"
"""The names of a served model's tensors."""
DATA_TYPES = {"float32": "FP32", "uint8": "UINT8"}
"""How requests name the types of number that images are of."""
REQUEST_S = 120.0
"""How long a request may take at the most."""

Answered = Callable[[Exception | None], None]


class ServiceOptions(EngineOptions):
    """Where the server is and how it is asked.

    `address`: host:port. `model`: its name there. `shared_memory`: how the names of regions of memory begin that images
    are handed over in; empty to send them. `repeats`: whether a batch that is handed in again has the same images
    still, so that it is made ready to send but once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    model: str
    protocol: str = "grpc"
    shared_memory: str = ""
    repeats: bool = False


class RequestError(CnnbenchError):
    """A request that was not answered as it should have been."""


class TritonClient(Backend):
    """A client of one model; each of its threads has a connection of its own where the protocol needs that."""

    def load(self, spec: LoadSpec) -> None:
        """Connect."""
        options = spec.options
        assert isinstance(options, ServiceOptions)
        self._options, self._own = options, threading.local()
        self._api: Any
        if options.protocol == "grpc":
            from tritonclient import grpc

            self._api = grpc
        else:
            from tritonclient import http

            self._api = http
        self._errors: Any = _error_type()
        self._shared = self._connect() if options.protocol == "grpc" else None
        self._regions: list[tuple[str, Any]] = []

    def _connect(self) -> Any:
        options = {} if self._options.protocol == "grpc" else {"network_timeout": REQUEST_S}
        return self._api.InferenceServerClient(self._options.address, **options)

    def _client(self) -> Any:
        if self._shared is not None:
            return self._shared
        if not hasattr(self._own, "client"):
            self._own.client = self._connect()
        return self._own.client

    def _input(self, batch: np.ndarray) -> Any:
        """Return a batch as it is sent."""
        if not self._options.repeats:
            return self._make_input(batch)
        if getattr(self._own, "batch", None) is not batch:
            self._own.tensor, self._own.batch = self._make_input(batch), batch
        return self._own.tensor

    def _make_input(self, batch: np.ndarray) -> Any:
        tensor = self._api.InferInput(INPUT, batch.shape, DATA_TYPES[batch.dtype.name])
        if self._options.shared_memory:
            tensor.set_shared_memory(self._place(batch), batch.nbytes)
        elif self._options.protocol == "grpc":
            tensor.set_data_from_numpy(batch)
        else:
            tensor.set_data_from_numpy(batch, binary_data=True)
        return tensor

    def _place(self, batch: np.ndarray) -> str:
        """Copy a batch into this thread's region of memory that the server reads too; return its name."""
        from tritonclient.utils import shared_memory

        if getattr(self._own, "size", 0) < batch.nbytes:  # the one before is given back at the end
            name = f"{self._options.shared_memory}-{threading.get_native_id()}-{batch.nbytes}"
            self._own.region = shared_memory.create_shared_memory_region(name, f"/{name}", batch.nbytes)
            self._own.name, self._own.size = name, batch.nbytes
            self._client().register_system_shared_memory(name, f"/{name}", batch.nbytes)
            self._regions.append((name, self._own.region))
        shared_memory.set_shared_memory_region(self._own.region, [batch])
        return str(self._own.name)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return what the server answers (float32, N x classes); raise RequestError when that is an error."""
        timeout = {"client_timeout": REQUEST_S} if self._options.protocol == "grpc" else {}
        try:
            answer = self._client().infer(self._options.model, [self._input(batch)], **timeout)
        except (self._errors, OSError) as error:
            raise _told(error) from error
        outputs: np.ndarray = answer.as_numpy(OUTPUT)
        return outputs

    def send(self, batch: np.ndarray, answered: Answered) -> None:
        """Send a request by gRPC and go on; `answered` is called in another thread with None, or what went wrong."""

        def done(result: Any, error: Exception | None) -> None:
            del result
            answered(_told(error) if error else None)

        self._client().async_infer(self._options.model, [self._input(batch)], done, client_timeout=REQUEST_S)

    def close(self) -> None:
        """Give back the memory and the connections."""
        from tritonclient.utils import shared_memory

        for name, region in self._regions:
            self._client().unregister_system_shared_memory(name)
            shared_memory.destroy_shared_memory_region(region)
        if self._shared is not None:
            self._shared.close()

    def describe(self) -> dict[str, str]:
        """Return the versions of what asks."""
        return {"tritonclient": version("tritonclient"), "client's numpy": np.__version__}


def _error_type() -> type[Exception]:
    from tritonclient.utils import InferenceServerException

    return InferenceServerException  # type: ignore[no-any-return]


def _told(error: BaseException) -> RequestError:
    text = " ".join(str(error).split())
    return RequestError(f"a request was not answered: {text[:300]}")
