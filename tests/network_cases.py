"""The cases of networks that tests run, and what is found in their results."""

from checkout import NETWORKS_SLUG as SLUG

CASE = f"test_{SLUG}_inference_throughput_avx_fp32_"
ACCURACY = CASE.replace("throughput", "accuracy")
QUICK = ("--warmup_steps=1", "--min_time=2", "--max_time=4")  # a time, not steps: enough samples on a busy machine


def kpis(run):
    return {kpi.key: kpi.value for kpi in run.kpis}
