"""The sampler, preloaded into programs that do what engines do, and worse: each must go on as without it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cnnbench.base.checkout import SOURCES
from cnnbench.proof.instructions import classify
from cnnbench.results.samples import Samples
from cnnbench.staging.sampler import find_sampler, stage_sampler

JEMALLOC = Path("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
BEGIN = """
import ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path
sys.path.insert(0, {sources!r})
from cnnbench.worker.sampler import Sampler

def burn(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        sum(range(1000))

sampler = Sampler(Path({file!r}), {capacity}, 4_000_000)
sampler.arm()
sampler.record()
"""
END = "\nsampler.finish(Path({kept!r}))\n"


@pytest.fixture(scope="session")
def library(engine_cache):
    """The sampler as this machine's compiler makes it."""
    staged = stage_sampler(find_sampler({"PATH": os.environ["PATH"]}), engine_cache)
    if not staged.library:
        pytest.skip(staged.reason)
    return staged.library


@pytest.fixture
def run_sampled(library, tmp_path):
    """Run Python code under the sampler; return its samples and what it printed."""

    def run(code: str, capacity: int = 5000, others: str = "") -> tuple[Samples, str]:
        kept = tmp_path / "kept.npz"
        words = {"sources": str(SOURCES), "file": str(tmp_path / "samples"), "capacity": capacity}
        program = BEGIN.format(**words) + textwrap.dedent(code) + END.format(kept=str(kept))
        environment = os.environ | {
            "LD_PRELOAD": ":".join(filter(None, [str(library), others])),
            "OPENBLAS_NUM_THREADS": "1",  # NumPy's own threads would be sampled too
        }
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return Samples.load(kept), done.stdout

    return run


def covered(samples: Samples) -> float:
    return (samples.records["missed"].astype(int) + 1).sum() * samples.period_ns / samples.cpu_ns


def test_each_thread_is_sampled_by_the_cpu_time_that_it_takes(run_sampled):
    code = """
    began = time.monotonic_ns()
    threads = [threading.Thread(target=burn, args=(0.4,)), threading.Thread(target=time.sleep, args=(0.4,))]
    for thread in threads:
        thread.start()
    burn(0.4)
    for thread in threads:
        thread.join()
    print(began, time.monotonic_ns(), threading.get_native_id(), *(thread.native_id for thread in threads))
    """
    samples, said = run_sampled(code)
    began, ended, *busy, asleep = map(int, said.split())
    records = samples.records
    assert len(records) == samples.seen
    assert set(busy) <= set(records["thread"])
    assert (records["thread"] == asleep).sum() <= 1  # as it begins, at the most
    assert np.isin(records["thread"], busy).mean() > 0.9
    inside = (began <= records["time_ns"]) & (records["time_ns"] <= ended)
    assert inside.mean() > 0.95  # but for what is sampled before and after
    assert covered(samples) == pytest.approx(1, abs=0.1)
    mapped = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in samples.maps.splitlines()]
    assert all(any(low <= address < high for low, high in mapped) for address in map(int, records["address"]))
    assert records["length"].min() >= 1
    assert isinstance(classify(bytes(records[0]["code"]), int(records[0]["address"])), str)


def test_forks_and_programs_that_are_run_are_not_sampled_and_go_on(run_sampled):
    code = """
    child = os.fork()
    if not child:
        thread = threading.Thread(target=burn, args=(0.2,))
        thread.start()
        burn(0.2)
        thread.join()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    told = [sys.executable, "-c", "import os, ctypes; print(os.environ.get('LD_PRELOAD'), "
            "hasattr(ctypes.CDLL(None), 'cnnbench_sampler_open'))"]
    assert subprocess.run(told, capture_output=True, text=True).stdout.split() == ["None", "False"]
    source = "int main(void) { return 0; }"
    subprocess.run(["cc", "-x", "c", "-o", "/dev/null", "-"], input=source, text=True, check=True)
    burn(0.5)
    print(threading.get_native_id())
    """
    samples, said = run_sampled(code)
    assert set(samples.records["thread"]) == {int(said)}


def test_a_thousand_threads_come_and_go_and_leave_nothing(run_sampled):
    code = """
    def count():
        return len(Path("/proc/self/maps").read_text().splitlines())

    def once(number):
        threads = [threading.Thread(target=burn, args=(0.002,)) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    once(10)
    before = count()
    for _ in range(100):
        once(10)
    time.sleep(0.3)  # Python joins a thread before the C library has ended it
    timers = Path("/proc/self/timers").read_text().count("notify:")
    print(before, count(), timers - len(os.listdir("/proc/self/task")))
    """
    samples, said = run_sampled(code)
    before, after, timers_too_many = map(int, said.split())
    assert after - before < 50  # the C library keeps some stacks for the next threads, the sampler none
    assert timers_too_many == 0
    assert covered(samples) < 0.5  # a thread of 2 ms ends before its first sample is due: the proof is told of it


def test_a_programs_own_signals_reach_it_and_no_call_is_interrupted_for_the_sampler(run_sampled):
    code = """
    got = {number: 0 for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGUSR1, signal.SIGRTMIN + 2)}
    def count(number, frame):
        got[number] += 1
    for number in got:
        signal.signal(number, count)
    signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
    read, write = os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    interrupted = 0
    while got[signal.SIGPROF] <= 10:
        burn(0.002)
    for step in range(200):
        burn(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGRTMIN + 2)
    signal.setitimer(signal.ITIMER_PROF, 0)
    for step in range(200):
        burn(0.002)
        if libc.usleep(50) == -1:
            interrupted += 1
        if libc.poll(None, 0, 1) == -1:
            interrupted += 1
    print(got[signal.SIGUSR1], got[signal.SIGRTMIN + 2], interrupted)
    """
    samples, said = run_sampled(code)
    assert said.split() == ["200", "200", "0"]  # it ended at all: its own timer's signals came too
    assert len(samples.records) > 5


@pytest.mark.skipif(not JEMALLOC.exists(), reason="jemalloc is not installed")
def test_another_library_may_be_preloaded_beside_it(run_sampled):
    code = """
    print(os.environ["LD_PRELOAD"], hasattr(ctypes.CDLL(None), "mallctl"))
    kept = [bytearray(100_000) for _ in range(100)]
    thread = threading.Thread(target=burn, args=(0.5,))
    thread.start()
    thread.join()
    """
    samples, said = run_sampled(code, others=str(JEMALLOC))
    assert said.split() == [str(JEMALLOC), "True"]
    assert len(samples.records) > 5


def test_a_full_file_takes_no_more_and_the_process_goes_on(run_sampled):
    samples, said = run_sampled("burn(1)\nprint('done')", capacity=10)
    assert said == "done\n"
    assert len(samples.records) == 10
    assert samples.seen > 15
    assert (samples.records["time_ns"] > 0).all()


BELOW_THE_STACK = r"""
#include <stdint.h>
/* Keep a pattern far below the stack pointer, as some kernels do, and count how often it is found changed. */
long corrupt(long rounds)
{
    long found = 0;
    for (long round = 0; round < rounds; round++) {
        uint64_t kept;
        __asm__ volatile("movq $0x5a5a5a5a, -2048(%%rsp)\n\tmov $20000, %%ecx\n1:\tdec %%ecx\n\tjnz 1b\n\t"
                         "movq -2048(%%rsp), %0" : "=r"(kept) : : "ecx", "memory", "cc");
        found += kept != 0x5a5a5a5a;
    }
    return found;
}
"""


def test_what_a_kernel_keeps_below_the_stack_pointer_stays(run_sampled, tmp_path):
    source, made = tmp_path / "below.c", tmp_path / "below.so"
    source.write_text(BELOW_THE_STACK)
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", made, source], check=True)
    code = f"""
    corrupt = ctypes.CDLL({str(made)!r}).corrupt
    corrupt.restype, found = ctypes.c_long, []
    threads = [threading.Thread(target=lambda: found.append(corrupt(15_000))) for _ in range(2)]
    for thread in threads:
        thread.start()
    found.append(corrupt(15_000))
    for thread in threads:
        thread.join()
    print(found)
    """
    samples, said = run_sampled(code)
    assert said == "[0, 0, 0]\n"
    assert len(samples.records) > 5


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("signal.signal(signal.SIGRTMAX - 7, lambda *_: None)", "could not make its file: Device or resource busy"),
        ("Path({file!r}).touch()", "could not make its file: File exists"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))",
            "could not make its file: File too large",
        ),
    ],
)
def test_why_it_cannot_sample_is_kept_and_the_process_goes_on(library, tmp_path, before, message):
    file = tmp_path / "samples"
    words = {"sources": str(SOURCES), "file": str(file), "capacity": 100}
    begin = BEGIN.format(**words).replace("\nsampler = ", f"\n{before.format(file=str(file))}\nsampler = ")
    found = run_to_failure(begin, tmp_path, os.environ | {"LD_PRELOAD": str(library)})
    assert found.failure == f"it {message}"


def test_a_process_without_it_says_so_and_goes_on(tmp_path):
    begin = BEGIN.format(sources=str(SOURCES), file=str(tmp_path / "samples"), capacity=100)
    found = run_to_failure(begin, tmp_path, os.environ)
    assert found.failure == "it was not preloaded into this process"


def run_to_failure(begin, tmp_path, environment):
    kept = tmp_path / "kept.npz"
    program = begin + "\nburn(0.5)" + END.format(kept=str(kept))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    found = Samples.load(kept)
    assert done.stdout == f"not sampled: {found.failure}\n"
    assert len(found.records) == 0
    assert found.cpu_ns >= 0.1e9
    return found


def test_outputs_are_the_same_bits_with_it(run_sampled):
    code = """
    import numpy
    one = numpy.random.default_rng(1).random((300, 300), dtype=numpy.float32)
    two = one
    for _ in range(200):
        two = one @ two
        two /= two.max()
    print(two.tobytes().hex()[:64], float(two.sum()))
    """
    samples, with_it = run_sampled(code)
    assert len(samples.records) > 5
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as it is sampled: threads decide how sums are parted
    command = [sys.executable, "-c", textwrap.dedent(code)]
    without = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert with_it == without
