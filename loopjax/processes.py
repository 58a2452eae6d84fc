"""The processes of one run: they meet, compare what they have, notice a loss, and stop together.

Process 0 listens at the address of the coordinator, and every other process keeps a connection to
it. JSON lines go both ways: signs of life, values to compare, requests to stop. The kernel closes
the connections of a process that ends, so the others know it at once; a host that is gone is known
by its silence. JAX would notice later, or not at all at start-up, and ends a process with the stack
of C++. This module needs no JAX: processes meet before they import it.
"""

import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Callable

from loopjax.connection import Connection, Patience, free_port, split_address
from loopjax.errors import UserError, first_line
from loopjax.progress import duration, print_line
from loopjax.signals import Signals, end_process

RESTART = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may start the same command again
SILENCE_S = 30.0  # without a sign of life before a process counts as lost
LAST_WORD_S = 2.0  # for the others to read why this process ends
GRACE_S = 5.0  # from an exception to the news that a lost process was its cause


class Processes:
    """A run of one process; `Group` is one of several.

    Attributes:
      index: index of this process.
      count: number of processes.
      step: updates done, shown to the others.
      silence_s: seconds without a sign of life before a process counts as lost.
      outlook: function that says what is saved, for the sentence about a lost process.
      signals: requests to stop that this process has received.
    """

    index, count = 0, 1

    def __init__(self, signals: Signals):
        self.signals = signals
        self.step = 0
        self.silence_s = SILENCE_S
        self.outlook: Callable[[], str] = lambda: "no checkpoint is saved"

    def exchange(self, what: str, value) -> list:
        """The JSON values that the processes give under one name, by index; waits for all."""
        return [value]

    def stops(self, step: int) -> bool:
        """Whether to save and stop after `step` updates; all processes get the same answer."""
        self.step = step
        return self.signals.requested is not None

    def name(self, index: int) -> str:
        return f"process {index}"

    def agree(self, what: str, values: dict) -> None:
        """Raises UserError when a process has another value of a name than process 0 has."""
        everyone = self.exchange(what, values)
        first = everyone[0]
        for index, theirs in enumerate(everyone):
            for name in {**first, **theirs}:
                if theirs.get(name) != first.get(name):
                    raise UserError(
                        f"{self.name(index)} has {name}={theirs.get(name)}, {self.name(0)} has "
                        f"{first.get(name)}; all processes must run the same command, code and data"
                    )


class Group(Processes):
    """A run of several processes. A context manager: `with Group(...) as group: group.meet()`.

    An error inside it is sent to the other processes, which end with the same exit code if it is a
    UserError, and with RESTART otherwise.

    Args:
      address: HOST:PORT of process 0.
      count, index: number of processes, and which of them this one is.
      start_s: seconds to wait for the other processes to start.
      end: function of a sentence and an exit code that ends this process.
    """

    def __init__(
        self, signals: Signals, address: str, count: int, index: int, start_s: float = 300.0,
        end: Callable[[str, int], None] = end_process,
    ):  # fmt: skip
        super().__init__(signals)
        self.host, self.port = split_address(address)
        self.count, self.index, self.start_s = count, index, start_s
        self.hosts = {index: socket.gethostname()}
        self.jax_address = ""  # of JAX's own coordinator, known after `meet`
        self._end = end
        self._links: dict[int, Connection] = {}
        self._news = threading.Condition()
        self._values: dict[str, dict[int, object]] = {}
        self._stop_step: int | None = None
        self._asked = False  # for a stop, by any process
        self._agreed: set[int] = set()  # processes that know the step to stop at
        self._refused = ""
        self._over = False
        self.signals.on_end = lambda text, code: self._last_word(failed=text, code=code)

    def name(self, index: int) -> str:
        host = self.hosts.get(index)
        return f"process {index} on {host}" if host else f"process {index}"

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, kind, error, trace) -> None:
        crash = not isinstance(error, UserError | KeyboardInterrupt | SystemExit | None)
        if crash:
            # A collective fails when a process is lost, and that it is lost is about to be known.
            time.sleep(GRACE_S)
        with self._news:
            self._over = True
        if error is None:
            self._last_word(bye=True)
        else:
            code = 2 if isinstance(error, UserError) else RESTART
            self._last_word(failed=first_line(error), code=code)
        for link in [*self._links.values()]:
            link.close()
        if crash:
            # JAX would wait for the others at the end of the interpreter.
            traceback.print_exception(error)
            self._end(f"loopjax: {self.name(self.index)} failed at step {self.step}", 1)

    # Meeting.

    def meet(self) -> None:
        """Waits until all processes are connected; raises UserError when they do not fit.

        Ends the process with RESTART when one is missing after `start_s`.
        """
        threading.Thread(target=self._watch, daemon=True).start()
        if self.index == 0:
            self._accept()
            self.jax_address = f"{self.host}:{free_port()}"
            hosts = {str(index): host for index, host in self.hosts.items()}
            self._tell(hosts=hosts, jax=self.jax_address)
            return
        self._connect()
        patience = Patience()
        with self._news:
            while not (self.jax_address or self._refused):
                self._news.wait(0.5)
                if patience.line_due():
                    print_line(f"waiting for the other of {self.count} processes")
        if self._refused:
            raise UserError(self._refused)

    def _accept(self) -> None:
        """Process 0: takes the connections of all others."""
        patience = Patience(self.start_s)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            server = socket.create_server(("", self.port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise UserError(
                f"--coordinator={self.host}:{self.port}: process 0 cannot listen there: "
                f"{error.strerror}"
            ) from None
        with server:
            server.settimeout(0.5)
            while missing := sorted({*range(self.count)} - {0, *self._links}):
                self._wait(patience, missing)
                with contextlib.suppress(TimeoutError):
                    self._welcome(Connection(server.accept()[0]))

    def _welcome(self, link: Connection) -> None:
        link.sock.settimeout(5.0)  # a stranger may say nothing
        hello = link.receive() or {}
        link.sock.settimeout(None)
        index, count, host = (hello.get(key) for key in ("index", "count", "host"))
        if not isinstance(index, int):
            link.close()
            return
        problem = ""
        if count != self.count:
            problem = (
                f"process {index} on {host} has --num_processes={count}, {self.name(0)} has "
                f"--num_processes={self.count}"
            )
        elif index in self.hosts:
            problem = f"two processes have --process_id={index}, on {self.hosts[index]} and {host}"
        if problem:
            link.send(refused=problem)
            link.close()
            raise UserError(problem)
        self.hosts[index] = host
        self._links[index] = link
        self._listen(index, link)

    def _connect(self) -> None:
        """Another process: connects to process 0."""
        patience = Patience(self.start_s)
        while True:
            try:
                sock = socket.create_connection((self.host, self.port), timeout=5.0)
                break
            except OSError as error:
                self._wait(patience, [0], f" ({error.strerror or error})")
                time.sleep(0.2)
        link = self._links[0] = Connection(sock)
        link.send(index=self.index, count=self.count, host=self.hosts[self.index])
        self._listen(0, link)

    def _wait(self, patience: "Patience", missing: list[int], reason: str = "") -> None:
        names = f"process {', '.join(map(str, missing))} of {self.count}"
        where = f"{self.host}:{self.port}"
        if patience.over():
            self._finish(
                f"{names} did not start within {duration(self.start_s)} at {where}{reason}; start "
                "all processes with the same command",
                RESTART,
            )
            raise SystemExit(RESTART)
        if patience.line_due():
            print_line(f"waiting for {names} at {where}{reason}")

    # Talking.

    def exchange(self, what: str, value) -> list:
        if self.index == 0:
            self._put(0, what, value)
        else:
            self._links[0].send(put=what, value=value)
        patience = Patience()
        with self._news:
            while len(self._values.get(what, {})) < self.count:
                self._news.wait(0.5)
                if patience.line_due():
                    print_line(f"waiting for the other processes ({what})")
            values = self._values.pop(what)
        return [values[index] for index in range(self.count)]

    def stops(self, step: int) -> bool:
        with self._news:
            self.step = step
            if self.signals.requested is not None and not self._asked:
                self._asked = True
                if self.index:
                    self._links[0].send(ask="stop")
            if self.index == 0 and self._asked and self._stop_step is None:
                # An update needs all processes, and the one before it is finished when the next one
                # is dispatched: while this process waits here, none gets beyond the next step.
                self._stop_step = step + 2
                self._tell(stop=self._stop_step)
                self._news.wait_for(lambda: len(self._agreed) == self.count - 1)
            return self._stop_step is not None and step >= self._stop_step

    def _tell(self, **message) -> None:
        for link in [*self._links.values()]:
            link.send(**message)

    def _last_word(self, but: int | None = None, **message) -> None:
        """Tells all processes but one, and waits until they know it.

        What a process has sent is lost when it ends before it has read what was sent to it.
        """
        links = [link for index, link in [*self._links.items()] if index != but]
        for link in links:
            link.send(**message)
        with self._news:
            self._news.wait_for(lambda: all(link.seen for link in links), LAST_WORD_S)

    def _put(self, index: int, what: str, value) -> None:
        with self._news:
            values = self._values.setdefault(what, {})
            values[index] = value
            if len(values) == self.count:
                everyone = [values[i] for i in range(self.count)]
                self._tell(everyone=what, values=everyone)
            self._news.notify_all()

    # Listening.

    def _listen(self, index: int, link: Connection) -> None:
        threading.Thread(target=self._read, args=(index, link), daemon=True).start()

    def _read(self, index: int, link: Connection) -> None:
        while (message := link.receive()) is not None:
            link.heard = time.monotonic()
            link.step = message.get("step", link.step)
            if "put" in message:
                self._put(index, message["put"], message["value"])
            elif "everyone" in message:
                with self._news:
                    self._values[message["everyone"]] = dict(enumerate(message["values"]))
                    self._news.notify_all()
            elif "jax" in message:
                with self._news:
                    self.hosts = {int(index): host for index, host in message["hosts"].items()}
                    self.jax_address = message["jax"]
                    self._news.notify_all()
            elif "refused" in message:
                with self._news:
                    self._refused = message["refused"]
                    self._news.notify_all()
                return
            elif "ask" in message:
                with self._news:
                    self._asked = True
            elif "stop" in message:
                with self._news:
                    self._stop_step = message["stop"]
                link.send(agreed=True)
            elif "agreed" in message:
                with self._news:
                    self._agreed.add(index)
                    self._news.notify_all()
            elif "seen" in message:
                with self._news:
                    link.seen = True
                    self._news.notify_all()
            elif "bye" in message:
                link.left = True
                link.send(seen=True)
            elif "failed" in message:
                link.send(seen=True)
                self._lost(index, f"ended: {message['failed']}", message["code"])
            elif "lost" in message:
                link.send(seen=True)
                self._finish(message["lost"], message["code"])
        with self._news:
            link.seen = True  # or will never be
            self._news.notify_all()
        if not link.left:
            self._lost(index, "ended without a word")

    def _watch(self) -> None:
        """Sends signs of life, and ends this process when another gives none."""
        last = time.monotonic()
        while not self._over:
            time.sleep(min(1.0, self.silence_s / 10))
            now = time.monotonic()
            if now - last > self.silence_s / 2:  # this process was itself stopped meanwhile
                for link in self._links.values():
                    link.heard = now
            last = now
            self._tell(step=self.step)
            for index, link in [*self._links.items()]:
                if not link.left and now - link.heard > self.silence_s:
                    self._lost(index, f"has given no sign of life for {self.silence_s:g} s")

    def _lost(self, index: int, how: str, code: int = RESTART) -> None:
        link = self._links.get(index)
        text = f"{self.name(index)} {how}"
        if code == RESTART:
            step = max(self.step, link.step if link else 0)
            text += (
                f" at step {step}; {self.outlook()}; this process ends with exit code {RESTART}, "
                "rerun the same command in all processes to resume"
            )
        if not self._over and self.index == 0:
            self._last_word(but=index, lost=text, code=code)
        self._finish(text, code)

    def _finish(self, text: str, code: int) -> None:
        with self._news:
            if self._over:
                return
            self._over = True
        self._end(f"loopjax: {text}", code)
