"""What the processes of a run know of each other's lives: when one ends, the others end too, with one line.

JAX's own service notices a lost process after up to minutes and ends the others by an abort with a C++ stack. Here
every process holds a connection to the first one. A killed process closes it, a process that hangs stops sending on it,
and the first one tells the others. Nothing of the training goes through these connections.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed as jax_distributed

from alm_jax.errors import AlmError, PreemptedError
from alm_jax.signals import INTERRUPTED

EXIT_CODE = 76
"""Exit code of a process whose peer ended: start the whole run again."""
WELL = (0, PreemptedError.exit_code)
"""Exit codes of a run that has ended as it should: a request to stop ends every process."""
BEAT_SEC = 2.0
GRACE_SEC = 5.0
"""Seconds that a process has to report an error of its own after a peer said that it had one."""
KEY = "alm/peers"
BEAT, BYE, FAILED, LOST = b".", b"b", b"f", b"l"


class Peers:
    """The connections of this process; does nothing in a run of one. Use it as a context manager around the run."""

    def __init__(self, timeout_sec: int, *, on_loss: Callable[[str], None] | None = None):
        """``timeout_sec``: without a sign of life before a process counts as lost."""
        self._timeout_sec = timeout_sec
        self._on_loss = on_loss or _end
        self._links: dict[int, socket.socket] = {}
        self._seen: dict[int, float] = {}
        self._gone: set[int] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._server: socket.socket | None = None

    def __enter__(self) -> "Peers":
        if jax.process_count() == 1:
            return self
        _delay_abort()
        client: Any = jax_distributed.global_state.client
        host = str(jax_distributed.global_state.coordinator_address).rpartition(":")[0].strip("[]")
        if jax.process_index() == 0:
            self._server = socket.create_server(("", 0))
            client.key_value_set(KEY, str(self._server.getsockname()[1]))
            self._start(self._accept)
        else:
            port = int(client.blocking_key_value_get(KEY, round(self._timeout_sec * 1000)))
            link = socket.create_connection((host, port), timeout=self._timeout_sec)
            link.settimeout(None)
            link.sendall(jax.process_index().to_bytes(4, "big"))
            self._add(0, link)
        self._start(self._beat)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._links and self._server is None:
            return
        code = _exit_code(error)
        if code == 1:
            # A collective fails where a peer is gone: the thread that listens to it knows what happened.
            time.sleep(GRACE_SEC)
        self._is_closed = True
        is_well = code in WELL
        with self._lock:
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.sendall(BYE if is_well else FAILED)
                    link.shutdown(socket.SHUT_WR)
        if self._server is not None:
            self._server.close()
        if not is_well:
            # JAX's own end waits for the other processes, and aborts where they are gone by then.
            atexit.register(_leave, code)

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="peers", daemon=True).start()

    def _add(self, index: int, link: socket.socket) -> None:
        with self._lock:
            self._links[index] = link
            self._seen[index] = time.monotonic()
        self._start(lambda: self._receive_signs(index, link))

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                index = int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")
                self._add(index, link)

    def _receive_signs(self, index: int, link: socket.socket) -> None:
        message = b""
        with contextlib.suppress(OSError):
            while message := link.recv(1):
                self._seen[index] = time.monotonic()
                if message == BYE:
                    self._gone.add(index)
                    return
                if message == FAILED:
                    # Most errors are found by all processes alike, and each is to say it itself.
                    time.sleep(GRACE_SEC)
                    self._report(index, "ended with an error")
                    return
                if message == LOST:
                    lost = int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")
                    self._report(lost, "is gone")
                    return
        self._report(index, "was killed or lost its connection")

    def _beat(self) -> None:
        while not self._is_closed:
            time.sleep(BEAT_SEC)
            now = time.monotonic()
            for index, link in list(self._links.items()):
                with contextlib.suppress(OSError):
                    link.sendall(BEAT)
                silent_sec = now - self._seen[index]
                if silent_sec > self._timeout_sec and index not in self._gone:
                    self._report(
                        index, f"gave no sign of life for {silent_sec:.0f} s (limit: --peer-timeout-sec)"
                    )

    def _report(self, index: int, what: str) -> None:
        if self._is_closed or index in self._gone:
            return
        self._gone.add(index)
        for other, link in list(self._links.items()):
            if other != index:
                with contextlib.suppress(OSError):
                    link.sendall(LOST + index.to_bytes(4, "big"))
        if self._server is not None and len(self._links) > 1:
            # The others read this before JAX's service, which ends with this process, is missed.
            time.sleep(1)
        self._on_loss(
            f"process {index} of {jax.process_count()} {what}, so process {jax.process_index()} ends too. The newest "
            "checkpoint is whole; start all processes of the run again with the same command to continue from it"
        )


def _delay_abort() -> None:
    """Holds an abort of this process back for six seconds.

    JAX aborts at once where the first process, whose service it polls, is gone. The thread that listens to that process
    needs a moment to say so and to end this one with its own exit code. The handler is C's ``sleep``, which takes the
    number of the signal, 6, as seconds: no Python may run in a thread that aborts.
    """
    libc = ctypes.CDLL(None)
    libc.signal(ctypes.c_int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def _exit_code(error: BaseException | None) -> int:
    """Exit code of a process that ends with ``error``."""
    match error:
        case None:
            return 0
        case AlmError():
            return error.exit_code
        case SystemExit(code=None | int()):
            return int(error.code or 0)
        case KeyboardInterrupt():
            return INTERRUPTED
    return 1


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _end(message: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(2, f"alm: {message}\n".encode())
    os._exit(EXIT_CODE)
