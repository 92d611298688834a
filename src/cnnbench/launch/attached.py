"""Start a container and stay attached to it; stop it at SIGTERM, which comes too when the parent dies.

`python start.py cnnbench.launch.attached SECONDS NAME CLI...`, by way of `tied`; SECONDS: how long the container has to
end by itself. The engine is asked, as its client would end at once, and may not have passed the signal on by then; and
what has no handler for the signal yet is killed by the engine.
"""

import signal
import subprocess
import sys

PAUSE_S = 1.0

if __name__ == "__main__":
    # They wait from here on to be taken by `sigwait`; the client starts with them blocked, and keeps to it.
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    seconds, name, cli = sys.argv[1], sys.argv[2], sys.argv[3:]
    client = subprocess.Popen([*cli, "start", "--attach", name], start_new_session=True)
    stop: subprocess.Popen[bytes] | None = None
    while client.poll() is None:
        # Once told, the engine is asked until it has: it may not have started the container yet, or not answer.
        seen = signal.sigtimedwait(awaited, PAUSE_S) if stop else signal.sigwaitinfo(awaited)
        is_told = seen is not None and seen.si_signo == signal.SIGTERM
        if is_told if stop is None else (seen is None and stop.poll() is not None):
            stop = subprocess.Popen([*cli, "stop", "-t", seconds, name], stdout=subprocess.DEVNULL)
    if stop is not None:
        stop.wait()
    sys.exit(client.returncode if client.returncode >= 0 else 128 - client.returncode)
