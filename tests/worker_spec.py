"""What a worker is told, as an example."""

import os

from cnnbench.worker.spec import InstanceSpec, WorkerSpec

SPEC = WorkerSpec(
    run_id="20250101T000000Z-0123abcd",
    controller=os.getpid(),
    engine="null",
    backend="cnnbench.engines.null.backend:NullBackend",
    reader="",
    options_type="cnnbench.engines.interface:EngineOptions",
    model="",
    precision="avx_fp32",
    number_type="fp32",
    on_gpu=False,
    form=None,
    batch_size=2,
    micro_batch_size=2,
    mode="throughput",
    whole_steps=False,
    options={},
    data_type="dummy",
    io_threads=1,
    steps=None,
    warmup_steps=5,
    trace_steps=None,
    instances=[InstanceSpec(0, [0, 2], ["it's a b.jpg"]), InstanceSpec(1, [4], [])],
    memory_node=None,
    check_images="",
    shared="/no/shared",
    logs="/no/logs",
    verbose=False,
)
