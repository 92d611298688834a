"""How many images a traced step has: as many as are timed, and where none are, no more than prove the instructions."""

from cnnbench.run.record import count_traced


def test_the_traced_step_of_accuracy_does_not_grow_with_the_batch():
    for mode, batch, on_gpu, traced in [
        ("accuracy", 300, False, 32),
        ("accuracy", 25, False, 25),
        ("accuracy", 300, True, 300),  # the measured process itself runs a step more
        ("throughput", 300, False, 300),
        ("latency", 1, False, 1),
    ]:
        assert count_traced(mode, batch, on_gpu) == traced
