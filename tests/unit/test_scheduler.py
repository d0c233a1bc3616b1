"""Where jobs go: in order, to where their objects are, and nowhere twice."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vortex_worker.supervisor.job import Job
from vortex_worker.supervisor.objects import ObjectRef
from vortex_worker.supervisor.scheduler import Scheduler, home_of, missing
from vortex_worker.supervisor.task import Task, Work


class Worker:
    """All that the scheduler asks of a worker."""

    def __init__(self, index=0):
        self.index = index
        self.lost = False
        self.arena = None
        self.dropped_objects = []
        self.busy = False
        self.active = True
        self.looks = 0

    @property
    def free(self):
        self.looks += 1
        return not self.busy and not self.lost

    @property
    def idle(self):
        return self.active and self.free


def task(number, refs=(), pinned=None):
    return Task(Job(number, "Op", lambda job: None), Work("Op", {}, {}, [], list(refs)), pinned=pinned)


def test_jobs_go_in_the_order_they_came():
    scheduler, worker = Scheduler(), Worker()
    tasks = [task(n) for n in range(5)]
    for each in tasks:
        scheduler.add(each)
    assert [scheduler.take(worker) for _ in range(6)] == [*tasks, None]


def test_a_retried_job_goes_first():
    scheduler, worker = Scheduler(), Worker()
    first, retried = task(1), task(2)
    scheduler.add(first)
    scheduler.add(retried, first=True)
    assert scheduler.take(worker) is retried


def test_a_higher_priority_goes_first_and_a_retried_job_first_among_its_like():
    scheduler, worker = Scheduler(), Worker()
    low, high, higher, retried = (task(n) for n in range(4))
    high.priority = retried.priority = 1
    higher.priority = 2
    scheduler.add(low)
    scheduler.add(high)
    scheduler.add(higher)
    scheduler.add(retried, first=True)
    assert [scheduler.take(worker) for _ in range(4)] == [higher, retried, high, low]


def test_a_job_that_left_and_came_again_has_the_later_place():
    scheduler, worker = Scheduler(), Worker()
    first, second = task(1), task(2)
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.remove(first)
    scheduler.add(first)
    assert [scheduler.take(worker) for _ in range(3)] == [second, first, None]


def test_a_job_waits_for_the_worker_that_has_its_objects():
    scheduler, here, there = Scheduler(), Worker(), Worker()
    job = task(1, [ObjectRef(here, 7, "MODEL")])
    scheduler.add(job)
    assert scheduler.take(there) is None
    assert scheduler.take(here) is job


def test_a_job_with_objects_in_two_places_goes_where_most_are():
    here, there = Worker(), Worker()
    refs = [ObjectRef(here, 1, "A"), ObjectRef(there, 2, "B"), ObjectRef(there, 3, "C")]
    assert home_of(refs) is there
    assert missing(refs, there) == [refs[0]]


def test_a_dead_workers_objects_are_missing_everywhere():
    here, there = Worker(), Worker()
    ref = ObjectRef(here, 1, "A")
    here.lost = True
    assert home_of([ref]) is None
    assert missing([ref, ref], there) == [ref]


def test_a_dead_workers_jobs_are_placed_anew():
    scheduler, here, there = Scheduler(), Worker(), Worker()
    waiting = task(1, [ObjectRef(here, 7, "MODEL")])
    scheduler.add(waiting)
    here.lost = True
    assert scheduler.evict(here) == [waiting]
    scheduler.add(waiting)
    assert scheduler.take(there) is waiting


def test_idle_workers_are_given_jobs_the_first_first_and_busy_ones_none():
    scheduler, workers = Scheduler(), [Worker(n) for n in range(3)]
    for worker in reversed(workers):
        scheduler.free(worker)
    assert scheduler.pair() is None
    tasks = [task(n) for n in range(3)]
    for each in tasks:
        scheduler.add(each)
    workers[1].busy = True
    for worker, job in ((workers[0], tasks[0]), (workers[2], tasks[1])):
        assert scheduler.pair() == (worker, job)
        worker.busy = True
    assert scheduler.pair() is None
    workers[1].busy = False
    scheduler.free(workers[1])
    assert scheduler.pair() == (workers[1], tasks[2])


def test_a_worker_that_died_idle_is_given_nothing():
    scheduler, dead, new = Scheduler(), Worker(0), Worker(0)
    scheduler.free(dead)
    assert scheduler.pair() is None
    dead.lost = True
    assert scheduler.evict(dead) == []
    scheduler.free(new)
    assert scheduler.pair() is None
    scheduler.add(task(1))
    assert scheduler.pair()[0] is new


def test_a_worker_that_stands_by_is_given_only_what_belongs_to_it():
    scheduler, standby = Scheduler(), Worker()
    standby.active = False
    scheduler.free(standby)
    scheduler.add(task(1))
    own = task(2, pinned=standby)
    scheduler.add(own)
    assert scheduler.pair() == (standby, own)
    standby.busy = True
    assert scheduler.pair() is None


def give_all(scheduler, ahead):
    """Who is given what, in order; what a busy worker gets is put ``ahead`` of it."""
    given = []
    while pair := scheduler.pair():
        worker, job = pair
        if worker.busy:
            ahead[worker].append(job)
        worker.busy = True
        given.append(pair)
    return given


def test_busy_workers_that_have_room_get_what_waits_in_turn_once_none_is_idle():
    ahead = {}
    scheduler = Scheduler(lambda worker, task: worker.busy and len(ahead[worker]) < 2)
    workers = [Worker(n) for n in range(2)]
    for worker in workers:
        ahead[worker] = []
        scheduler.free(worker)
    tasks = [task(n) for n in range(7)]
    for each in tasks:
        scheduler.add(each)
    given = give_all(scheduler, ahead)
    first, second = workers
    assert given[:2] == [(first, tasks[0]), (second, tasks[1])]
    assert [job for _, job in given] == tasks[:6]
    assert {tuple(ahead[worker]) for worker in workers} == {(tasks[2], tasks[4]), (tasks[3], tasks[5])}
    ahead[first].pop(0)
    assert scheduler.pair() is None  # nobody said that it has room again
    scheduler.free(first)
    assert scheduler.pair() == (first, tasks[6])


def test_an_idle_worker_is_left_alone_while_those_at_work_are_enough_and_have_room():
    ahead = {}
    scheduler = Scheduler(
        room=lambda worker, task: worker.busy and len(ahead[worker]) < 2, enough=lambda busy, task: busy >= 2
    )
    workers = [Worker(n) for n in range(4)]
    for worker in workers:
        ahead[worker] = []
        scheduler.free(worker)
    assert scheduler.pair() is None
    for number in range(9):
        scheduler.add(task(number))
    given = [worker.index for worker, _ in give_all(scheduler, ahead)]
    assert given[:2] == [0, 1]
    assert sorted(given[:6]) == [0, 0, 0, 1, 1, 1]  # until they have no room
    assert given[6:] == [2, 3, 2] or given[6:] == [2, 3, 3]


def test_a_worker_that_has_become_idle_is_not_one_of_those_at_work():
    counts = []
    scheduler = Scheduler(lambda worker, task: False, lambda busy, task: counts.append(busy))
    workers = [Worker(n) for n in range(3)]
    for worker in workers:
        worker.busy = True
        scheduler.free(worker)
    assert scheduler.pair() is None
    for worker in workers[:2]:
        worker.busy = False
        scheduler.free(worker)
    assert scheduler.pair() is None
    scheduler.add(task(1))
    assert scheduler.pair()[0] is workers[0]
    assert counts == [1]


def test_nothing_that_waits_for_another_worker_is_given_to_one_that_has_room():
    scheduler, here, there = Scheduler(lambda worker, task: True), Worker(0), Worker(1)
    here.busy = there.busy = True
    scheduler.free(here)
    scheduler.add(task(1, [ObjectRef(there, 7, "MODEL")]))
    assert scheduler.pair()[0] is there
    assert scheduler.pair() is None


def test_a_worker_that_died_is_given_nothing_ahead():
    scheduler, dead = Scheduler(lambda worker, task: True), Worker()
    dead.busy = True
    scheduler.free(dead)
    assert scheduler.pair() is None
    scheduler.evict(dead)
    scheduler.add(task(1))
    assert scheduler.pair() is None


def looks_per_job(workers, jobs=500):
    """How often a worker is looked at for each of ``jobs`` jobs, of which some wait for a worker of theirs."""
    scheduler, crew = Scheduler(), [Worker(n) for n in range(workers)]
    for worker in crew:
        scheduler.free(worker)
    running = []
    for number in range(jobs):
        scheduler.add(task(number, pinned=crew[number * 7 % workers] if number % 5 == 0 else None))
        while pair := scheduler.pair():
            pair[0].busy = True
            running.append(pair[0])
        if len(running) > workers // 2:
            done = running.pop(0)
            done.busy = False
            scheduler.free(done)
    return sum(worker.looks for worker in crew) / jobs


def test_a_job_costs_no_more_looks_the_more_workers_there_are():
    few, many = looks_per_job(2), looks_per_job(256)
    assert few < 12
    assert many < 12


class Model(RuleBasedStateMachine):
    """Against a list: whatever is added comes out once, in order, at a worker that may have it."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler()
        self.workers = [Worker(0), Worker(1), Worker(2)]
        for worker in self.workers:
            self.scheduler.free(worker)
        self.waiting = []
        self.count = 0

    @rule(home=st.none() | st.integers(0, 2))
    def add(self, home):
        self.count += 1
        pinned = None if home is None else self.workers[home]
        new = task(self.count, pinned=pinned)
        self.scheduler.add(new)
        self.waiting.append(new)

    @rule(index=st.integers(0, 30))
    def cancel(self, index):
        if self.waiting:
            gone = self.waiting.pop(index % len(self.waiting))
            assert self.scheduler.remove(gone)
            assert not self.scheduler.remove(gone)

    def expected(self, worker):
        own = [t for t in self.waiting if t.pinned is worker]
        free = [t for t in self.waiting if t.pinned is None]
        return (own or free or [None])[0]

    @rule(index=st.integers(0, 2))
    def take(self, index):
        worker = self.workers[index]
        expected = self.expected(worker)
        assert self.scheduler.take(worker) is expected
        if expected:
            self.waiting.remove(expected)

    @rule()
    def pair(self):
        while pair := self.scheduler.pair():
            worker, got = pair
            assert worker.idle
            assert got is self.expected(worker)
            self.waiting.remove(got)
            worker.busy = True
        assert not any(worker.idle and self.expected(worker) for worker in self.workers)

    @rule(index=st.integers(0, 2))
    def finish(self, index):
        self.workers[index].busy = False
        self.scheduler.free(self.workers[index])

    @rule()
    def drain(self):
        assert self.scheduler.drain() == self.waiting
        self.waiting = []

    @invariant()
    def counts(self):
        assert len(self.scheduler) == len(self.waiting)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = Model.TestCase


class Life(RuleBasedStateMachine):
    """Tasks from their submission to their end, by the supervisor's rules, while workers die.

    Of every task, at every moment: it waits, it runs at one worker, it is ahead in one that runs another, or it has
    ended; never two of these, and nobody else's turn is taken. A worker's death retries what it ran, gives back what
    was ahead in it as it was, ends what was pinned to it, and places anew what waited for its objects.
    """

    MOST = 2  # ahead in one worker

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(self.has_room)
        self.workers = [Worker(0), Worker(1), Worker(2)]
        self.ahead = {worker: [] for worker in self.workers}
        for worker in self.workers:
            self.scheduler.free(worker)
        self.told = set(self.workers)  # idle ones, of which the scheduler was told
        self.order = 0
        self.waiting = {}  # task: (-priority, can run elsewhere, order)
        self.running = {}  # worker: task
        self.ended = []
        self.submitted = 0

    def has_room(self, worker, task):
        return worker in self.running and len(self.ahead[worker]) < self.MOST and task.retries > 0 and not task.pinned

    def home(self, task):
        return task.pinned or home_of(task.work.refs)

    def put(self, task, first=False):
        self.scheduler.add(task, first=first)
        self.order += 1
        order = -self.order if first else self.order
        self.waiting[task] = (-task.priority, self.home(task) is None, order)

    @rule(
        priority=st.integers(-2, 2),
        retries=st.integers(0, 2),
        refs=st.lists(st.integers(0, 2), max_size=3),
        pinned=st.none() | st.integers(0, 2),
    )
    def submit(self, priority, retries, refs, pinned):
        self.submitted += 1
        objects = [ObjectRef(self.workers[index], number, "MODEL") for number, index in enumerate(refs)]
        new = task(self.submitted, objects, None if pinned is None else self.workers[pinned])
        new.priority, new.retries = priority, retries
        self.put(new)

    @rule(index=st.integers(0, 2))
    def take(self, index):
        worker = self.workers[index]
        if worker in self.running:
            return
        expected = self.next_for(worker)
        assert self.scheduler.take(worker) is expected
        if expected is not None:
            del self.waiting[expected]
            self.run(worker, expected)

    def next_for(self, worker):
        mine = [one for one in self.waiting if self.home(one) in (None, worker)]
        return min(mine, key=self.waiting.__getitem__, default=None)

    def run(self, worker, one):
        worker.busy = True
        self.running[worker] = one

    @rule()
    def pair(self):
        """Idle workers first; then those with room."""
        while pair := self.scheduler.pair():
            worker, got = pair
            assert got is self.next_for(worker)
            del self.waiting[got]
            if worker in self.running:
                assert self.has_room(worker, got)
                assert not any(self.next_for(other) and other not in self.running for other in self.told)
                self.ahead[worker].append(got)
            else:
                self.run(worker, got)
        self.told = set()

    @rule(index=st.integers(0, 2))
    def finish(self, index):
        worker = self.workers[index]
        if worker in self.running:
            self.ended.append(self.running.pop(worker))
            if self.ahead[worker]:
                self.running[worker] = self.ahead[worker].pop(0)
            else:
                worker.busy = False
                self.told = {*self.told, worker}
            self.scheduler.free(worker)

    @rule(index=st.integers(0, 2))
    def take_back(self, index):
        """What it runs is long after all."""
        worker = self.workers[index]
        for one in reversed(self.ahead[worker]):
            self.put(one, first=True)
        self.ahead[worker].clear()

    @rule(index=st.integers(0, 30))
    def cancel(self, index):
        if self.waiting:
            gone = list(self.waiting)[index % len(self.waiting)]
            assert self.scheduler.remove(gone)
            del self.waiting[gone]
            self.ended.append(gone)

    @rule(index=st.integers(0, 2))
    def die(self, index):
        worker = self.workers[index]
        stranded = sorted((one for one in self.waiting if self.home(one) is worker), key=self.waiting.__getitem__)
        worker.lost = True
        self.workers[index] = Worker(index)
        self.ahead[self.workers[index]] = []
        self.told = {*self.told} - {worker}
        self.scheduler.free(self.workers[index])
        for one in reversed(self.ahead.pop(worker)):
            self.put(one, first=True)
        ran = self.running.pop(worker, None)
        if ran is not None and ran.retries > 0 and ran.pinned is None:
            ran.retries -= 1
            self.put(ran, first=True)
        elif ran is not None:
            self.ended.append(ran)
        assert self.scheduler.evict(worker) == stranded
        for one in stranded:
            del self.waiting[one]
            if one.pinned is worker:
                self.ended.append(one)
            else:
                self.put(one)

    @rule()
    def drain(self):
        assert set(self.scheduler.drain()) == set(self.waiting)
        self.ended += self.waiting
        self.waiting.clear()

    @invariant()
    def every_task_is_in_one_place(self):
        assert len(self.scheduler) == len(self.waiting)
        ahead = [one for waiting in self.ahead.values() for one in waiting]
        assert all(worker in self.running for worker, waiting in self.ahead.items() if waiting)
        places = [*self.waiting, *self.running.values(), *ahead, *self.ended]
        assert len(places) == len(set(places)) == self.submitted

    def teardown(self):
        """Whatever happened, workers that live get to everything that waits."""
        for worker in self.workers:
            while (one := self.scheduler.take(worker)) is not None:
                del self.waiting[one]
        assert self.waiting == {}


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestLife = Life.TestCase
