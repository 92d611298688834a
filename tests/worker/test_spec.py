"""How many images a step has that is traced: as many as are timed, and where none are, no more than prove something."""

from cnnbench.worker.spec import count_proof


def test_the_traced_step_of_accuracy_is_one_part_and_does_not_grow_with_the_batch():
    for mode, batch, part, on_gpu, traced in [
        ("accuracy", 300, 300, False, 32),
        ("accuracy", 4096, 4096, False, 32),
        ("accuracy", 25, 25, False, 25),
        ("accuracy", 300, 10, False, 10),
        ("accuracy", 300, 300, True, 300),  # the measured process itself runs a step more
        ("throughput", 300, 300, False, 300),
        ("throughput", 300, 10, False, 300),
        ("latency", 1, 1, False, 1),
    ]:
        assert count_proof(mode, batch, part, on_gpu) == traced
