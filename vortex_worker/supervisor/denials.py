"""What becomes of a call that a worker was denied: it dies of it, or somebody learns from it. Fabric's thread."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from vortex_worker._core.process import signal_thread

if TYPE_CHECKING:
    from vortex_worker.sandbox.learning import Lessons
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.denial import Denial
    from vortex_worker.supervisor.link import WorkerLink

log = logging.getLogger("vortex_worker")

_LAST_WORDS = 0.05  # s that a worker has to say where its denied call came from
_LOOK, _LOOKS = 0.001, 1000  # s between looks at whether a worker's results have been heard, and how often
_REFUSALS = 3  # calls in a row that are answered for that, of one thread


class Denials:
    """Hears what the kernel tells of every worker."""

    def __init__(self, crew: Crew, lessons: Lessons | None) -> None:
        """``lessons``: let through what a policy could allow, and note it there. Unsafe."""
        self._crew = crew
        self._lessons = lessons

    @property
    def learning(self) -> bool:
        return self._lessons is not None

    def heard(self, link: WorkerLink) -> None:
        """The kernel holds back a call of this worker, which dies of it."""
        assert link.listener is not None
        denial = link.listener.receive()
        if denial is not None:
            self._act(link, denial)
        elif link.listener.hung_up():  # and stays readable until the kernel has buried the dead, which takes it a while
            self._crew.loop.remove_reader(link.listener.fd)

    def _act(self, link: WorkerLink, denial: Denial, looks: int = 0) -> None:
        """The caller is held until then."""
        assert link.listener is not None
        if not link.alive:
            return
        if link.lags and looks < _LOOKS:
            # It says that it has come to its next job: then we are about to hear the results of those before, which
            # are not to blame, nor to be lost.
            self._crew.loop.call_later(_LOOK, self._act, link, denial, looks + 1)
        elif self._learn(link, denial):
            link.listener.let_through(denial)
        elif link.denial is None:
            link.denial = denial
            self._crew.endings.condemn(link)
            log.warning("worker %s is killed: its sandbox denied it %s", link.worker_id, denial)
            # Where was it? Its fault handler writes that to its log, and the kernel restarts the call: then, or
            # when it does not answer, for the handler is only its own, it dies.
            if signal_thread(link.process.pid, denial.thread, signal.SIGSYS):
                self._crew.loop.call_later(_LAST_WORDS, link.kill)
                self._hear_out(link, denial)
            else:
                link.kill()
        elif not self._hear_out(link, denial):
            link.kill()

    def _hear_out(self, link: WorkerLink, denial: Denial) -> bool:
        """Whether the call was refused, for else its thread can't hear that it is asked. Its end is on its way.

        Python's ``subprocess`` tries fork where vfork is refused: then that is the next.
        """
        assert link.listener is not None
        assert link.denial is not None
        if denial.thread != link.denial.thread or link.refused >= _REFUSALS or not denial.blocks_signals:
            return False
        link.refused += 1
        link.listener.refuse(denial)
        return True

    def _learn(self, link: WorkerLink, denial: Denial) -> bool:
        """Whether the call is let through, and noted."""
        if self._lessons is None or not denial.native or link.denial is not None:
            return False
        who = f"node {link.task.work.op_type}" if link.task else "loading custom nodes, or between jobs"
        try:
            new = self._lessons.note(denial.call, denial.args, who, link.process.pid)
        except ValueError as error:
            log.warning("worker %s: %s", link.worker_id, error)
            return False
        if new:
            log.warning("UNSAFE, learning: worker %s was let through %s, for %s", link.worker_id, denial, who)
        return True
