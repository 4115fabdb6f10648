"""A thread that computes in the background, and always the newest of what it was asked for.

A job is a generator: wherever it yields, a newer one may take its place.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

Job = Callable[[], Iterator[None]]


def together(jobs: Mapping[str, Generator], threads: int) -> Iterator[dict[str, Any]]:
    """What each of `jobs` yields next, by its name, until all have ended.

    As many take their turn at once as there are `threads`, which they share: a small model gains
    more from two lines on a thread each than from two threads on a line. Between turns none runs.
    """
    left, whole = dict(jobs), torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            while left:
                names = list(left)[:threads]
                share = max(1, threads // len(names))
                turns = [pool.submit(_turn, left[name], share) for name in names]
                found = {name: turn.result() for name, turn in zip(names, turns, strict=True)}
                left = {name: job for name, job in left.items() if found.get(name, job) is not None}
                if results := {name: x for name, x in found.items() if x is not None}:
                    yield results
    finally:
        torch.set_num_threads(whole)  # what threads to come begin with
        for job in jobs.values():
            job.close()


def _turn(job: Generator, threads: int) -> Any:
    """What `job` yields next, or None at its end, computed by so many `threads`."""
    torch.set_num_threads(threads)  # of this thread only
    return next(job, None)


class Worker:
    """Runs the newest `ask`; between its yields, and when it is done, the newest `look`.

    A job that is overtaken is closed where it is. `failed` is called, here, with what a job raised;
    `idle` when nothing is left to do.
    """

    def __init__(self, failed: Callable[[Exception], None], idle: Callable[[], None]):
        self._failed, self._idle = failed, idle
        self._news = threading.Condition()
        self._asked: Job | None = None
        self._looked: Job | None = None
        self._thread: threading.Thread | None = None
        self._threads = torch.get_num_threads()  # not what another worker's jobs share just now
        self._busy = self._ended = False

    def ask(self, job: Job) -> None:
        """Run `job` as soon as the running one yields."""
        self._put("_asked", job)

    def look(self, job: Job) -> None:
        """Run `job` between the yields of what was asked for."""
        self._put("_looked", job)

    @property
    def wanted(self) -> bool:
        """Whether something was asked for that has not begun."""
        return bool(self._asked or self._looked)

    def wait(self, seconds: float) -> bool:
        """Whether all was done within so many seconds."""
        with self._news:
            done = lambda: not self._busy and not self._asked and not self._looked  # noqa: E731
            return self._news.wait_for(done, seconds)

    def end(self) -> None:
        """Close what runs at its next yield; nothing runs from then on."""
        with self._news:
            self._asked = self._looked = None
            self._ended = True
            self._news.notify_all()

    def _put(self, name: str, job: Job) -> None:
        with self._news:
            if self._ended:
                return
            setattr(self, name, job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="explorer", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def _take(self, name: str) -> Job | None:
        with self._news:
            job = getattr(self, name)
            setattr(self, name, None)
            return job

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: self._asked or self._looked or self._ended)
                if self._ended:
                    return
                self._busy = True
            if job := self._take("_asked"):
                self._go(job, self._overtaken)
            if not self._asked:
                self._look()
            if not self.wanted and not self._ended:
                try:
                    self._idle()
                except Exception as error:  # this thread must live on
                    self._failed(error)

    def _overtaken(self) -> bool:
        """Whether the running `ask` has to end; a look that came in between is done first."""
        self._look()
        return self._ended or self._asked is not None

    def _look(self) -> None:
        if job := self._take("_looked"):
            self._go(job, lambda: bool(self._ended or self._asked or self._looked))

    def _go(self, job: Job, ended: Callable[[], bool]) -> None:
        steps = job()
        try:
            for _ in steps:
                if ended():
                    break
        except Exception as error:  # shown on the page: in this thread nobody would see it
            self._failed(error)
        finally:
            steps.close()
