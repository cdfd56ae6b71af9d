from __future__ import annotations

import itertools
import signal
import threading
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BadGraph, BadTokens
from edge.jobs import CPU, NPU, Job, Part, Stage, chunk_jobs, lower_bound_s, processors_of, work_s
from edge.schedule import GREEDY, IN_ORDER, Rule, Timeline, best_rule, run, simulate

HELD = Rule("greedy", held=True)
RULES = (IN_ORDER, GREEDY, HELD, Rule("staggered", 0.25), Rule("staggered", 2.0, held=True))
PATIENCE_S = 30  # of what never takes so long unless it hangs


@st.composite
def dags(draw: st.DrawFn, *, distinct: bool = False) -> tuple[Job, ...]:
    """Random jobs of some chunks on up to three processors.

    `distinct`: no two sums of their times are equal.
    """
    count = draw(st.integers(1, 12))
    jobs = []
    for place in range(count):
        processor = draw(st.sampled_from((NPU, CPU, "gpu")))
        seconds = 2.0**place if distinct else float(draw(st.integers(0, 5)))
        after = draw(st.lists(st.integers(0, place - 1), max_size=3)) if place else []
        chunk = draw(st.integers(0, 2))
        jobs.append(Job(chunk, f"stage {place}", Part(processor), seconds, tuple(after)))
    if distinct:
        times = draw(st.permutations([job.seconds for job in jobs]))
        jobs = [
            Job(job.chunk, job.stage, job.part, seconds, job.after)
            for job, seconds in zip(jobs, times, strict=True)
        ]
    return tuple(jobs)


def check_timeline(timeline: Timeline) -> None:
    """Every job once, after what it waits for, alone on its processor."""
    spans = {span.place: span for span in timeline.spans}
    assert sorted(spans) == list(range(len(timeline.jobs)))
    assert len(timeline.spans) == len(timeline.jobs)
    for place, job in enumerate(timeline.jobs):
        assert all(spans[other].end_s <= spans[place].start_s for other in job.after), job.name
    for processor in processors_of(timeline.jobs):
        ran = timeline.on(processor)
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(ran))


@given(dags(), st.sampled_from(RULES))
def test_a_simulation_keeps_dependencies_and_processors(jobs: tuple[Job, ...], rule: Rule) -> None:
    timeline = simulate(jobs, rule)
    check_timeline(timeline)
    assert [span.seconds for span in sorted(timeline.spans, key=lambda s: s.place)] == [
        job.seconds for job in jobs
    ]
    total = sum(job.seconds for job in jobs)
    assert lower_bound_s(jobs) <= timeline.makespan_s <= total
    assert timeline == simulate(jobs, rule)


@given(dags(), st.sampled_from(RULES))
@settings(max_examples=50)
def test_a_run_keeps_dependencies_and_processors(jobs: tuple[Job, ...], rule: Rule) -> None:
    done: list[int] = []
    timeline = run(
        jobs, [lambda place=place: done.append(place) for place in range(len(jobs))], rule
    )
    check_timeline(timeline)
    assert sorted(done) == list(range(len(jobs)))
    assert all(done.index(other) < done.index(p) for p, j in enumerate(jobs) for other in j.after)


@given(dags())
def test_in_order_is_the_order_of_the_list(jobs: tuple[Job, ...]) -> None:
    timeline = simulate(jobs, IN_ORDER)
    for processor in processors_of(jobs):
        places = [span.place for span in timeline.on(processor)]
        assert places == sorted(places)


class Pace:
    """Actions that end in the order in which the simulation says, so that times are deterministic.

    A job may end when all that ended before it have, and all that started before its end have.
    """

    def __init__(self, timeline: Timeline) -> None:
        spans = {span.place: span for span in timeline.spans}
        self.before = {
            place: [
                {p for p, s in spans.items() if s.start_s < span.end_s},
                {p for p, s in spans.items() if s.end_s < span.end_s},
            ]
            for place, span in spans.items()
        }
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.changed = threading.Condition()

    def act(self, place: int) -> None:
        started, ended = self.before[place]
        with self.changed:
            self.started.add(place)
            self.changed.notify_all()
            ready = self.changed.wait_for(
                lambda: started <= self.started and ended <= self.ended, PATIENCE_S
            )
            assert ready, f"job {place}: the run does not start what the simulation does"
            self.ended.add(place)
            self.changed.notify_all()


@given(dags(distinct=True), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_run_and_simulation_agree_where_times_do(jobs: tuple[Job, ...], rule: Rule) -> None:
    simulated = simulate(jobs, rule)
    pace = Pace(simulated)
    ran = run(jobs, [lambda place=place: pace.act(place) for place in range(len(jobs))], rule)
    for processor in processors_of(jobs):
        assert [s.place for s in ran.on(processor)] == [s.place for s in simulated.on(processor)]


STAGES = tuple(
    stage
    for layer in range(12)
    for stage in (
        Stage(f"{layer}.norm", (Part(CPU),)),
        Stage(f"{layer}.qkv", (Part(NPU),)),
        Stage(f"{layer}.attention", (Part(CPU),), across=True),
        Stage(f"{layer}.rest", (Part(NPU),)),
    )
)


def seconds(chunk: int, stage: Stage, part: Part) -> float:
    if part.processor == NPU:
        return 4.0
    return 1.0 + 2 * chunk if stage.across else 0.5


def test_out_of_order_fills_the_bubbles() -> None:
    """Chunks of a transformer: the NPU hardly waits, and the bound is nearly met."""
    jobs = chunk_jobs(STAGES, 4, seconds)
    in_order, greedy, best = (simulate(jobs, rule) for rule in (IN_ORDER, GREEDY, best_rule(jobs)))
    assert in_order.bubble_share() > 0.3
    assert best.bubble_share() < 0.01
    assert best.makespan_s < 1.01 * lower_bound_s(jobs)
    assert best.makespan_s < greedy.makespan_s < in_order.makespan_s
    assert best.busy_s(NPU) == work_s(jobs, NPU)


def test_a_chunk_that_is_held_back_fills_the_bubbles_of_two() -> None:
    """Two chunks in step wait in every layer for the second one's attention."""
    npu = {"qkv": 2.2, "output": 1.2, "feed_forward": 5.0}
    cpu = {"norm": 0.3, "attention": 1.5, "second_norm": 0.3}
    order = ("norm", "qkv", "attention", "output", "second_norm", "feed_forward")
    stages = [
        Stage(f"{layer}.{kind}", (Part(NPU if kind in npu else CPU),), across=kind == "attention")
        for layer in range(12)
        for kind in order
    ]

    def taken(chunk: int, stage: Stage, part: Part) -> float:
        del part
        kind = stage.name.split(".")[1]
        return (npu | cpu)[kind] + (2.0 * chunk if kind == "attention" else 0)

    jobs = chunk_jobs(stages, 2, taken)
    bound_s = lower_bound_s(jobs)
    assert simulate(jobs, GREEDY).makespan_s > 1.1 * bound_s
    held = simulate(jobs, HELD)
    assert held.makespan_s < 1.02 * bound_s
    assert simulate(jobs, best_rule(jobs)).makespan_s <= held.makespan_s
    second = next(span for span in held.spans if jobs[span.place].chunk == 1)
    first = next(s for s in held.spans if jobs[s.place].stage == "0.attention")
    assert second.start_s >= first.end_s


@given(dags())
@settings(max_examples=30)
def test_the_best_rule_is_no_worse_than_the_greedy_one(jobs: tuple[Job, ...]) -> None:
    best, greedy = (simulate(jobs, rule).makespan_s for rule in (best_rule(jobs), GREEDY))
    assert best <= max(greedy, 1.002 * lower_bound_s(jobs))


def test_the_cpu_first_does_what_the_npu_gets_most_from() -> None:
    jobs = (
        Job(0, "idle", Part(CPU), 1),
        Job(0, "feeds little", Part(CPU), 1),
        Job(0, "feeds much", Part(CPU), 1),
        Job(0, "little", Part(NPU), 1, (1,)),
        Job(0, "much", Part(NPU), 5, (2,)),
    )
    places = [span.place for span in simulate(jobs, GREEDY).on(CPU)]
    assert places == [2, 1, 0]


def test_the_npu_puts_off_what_the_cpu_works_long_on() -> None:
    jobs = (
        Job(0, "long after", Part(NPU), 1),
        Job(0, "short after", Part(NPU), 1),
        Job(0, "long", Part(CPU), 5, (0,)),
        Job(0, "short", Part(CPU), 1, (1,)),
    )
    assert [span.place for span in simulate(jobs, GREEDY).on(NPU)] == [1, 0]


def test_nothing_to_do_takes_no_time() -> None:
    for timeline in (simulate((), IN_ORDER), run((), (), best_rule(()))):
        assert (timeline.makespan_s, timeline.bubble_share()) == (0, 0)


CHAIN = tuple(
    Job(0, f"stage {place}", Part(NPU if place % 2 else CPU), 1, (place - 1,) if place else ())
    for place in range(6)
)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_first_error_stops_the_run_and_names_the_job(rule: Rule) -> None:
    threads, done = threading.active_count(), []

    def act(place: int) -> None:
        if place == 3:
            raise ZeroDivisionError("by zero")
        done.append(place)

    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        run(CHAIN, [lambda place=place: act(place) for place in range(6)], rule)
    assert caught.value.__notes__ == ["in chunk 0 stage 3 on the npu"]
    assert done == [0, 1, 2]
    assert threading.active_count() == threads


def test_an_error_of_ours_keeps_its_class_and_cure() -> None:
    def fail() -> None:
        raise BadTokens("no tokens", "give some")

    with pytest.raises(BadTokens) as caught:
        run(CHAIN[:1], [fail], GREEDY)
    assert (caught.value.what, caught.value.cure) == ("chunk 0 stage 0: no tokens", "give some")


def test_a_job_that_runs_beside_a_failing_one_ends_first() -> None:
    jobs = (Job(0, "bad", Part(CPU), 1), Job(0, "good", Part(NPU), 1), Job(0, "next", Part(NPU), 1))
    beside, done = threading.Barrier(2), []

    def bad() -> None:
        beside.wait(PATIENCE_S)
        raise ValueError

    def good() -> None:
        beside.wait(PATIENCE_S)
        failing = next(t for t in threading.enumerate() if t.name == "lutra-cpu")
        failing.join(PATIENCE_S)
        done.append("good")

    with pytest.raises(ValueError):  # noqa: PT011
        run(jobs, [bad, good, lambda: done.append("next")], GREEDY)
    assert done == ["good"]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_cancelling_starts_nothing_more(rule: Rule) -> None:
    cancel, done = threading.Event(), []

    def act(place: int) -> None:
        done.append(place)
        if place == 2:
            cancel.set()

    with pytest.raises(CancelledError, match="3 jobs left"):
        run(CHAIN, [lambda place=place: act(place) for place in range(6)], rule, cancel=cancel)
    assert done == [0, 1, 2]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_workers() -> None:
    threads = threading.active_count()

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)  # Python hands it to the main thread

    with pytest.raises(KeyboardInterrupt):
        run(CHAIN, [interrupt, *[lambda: None] * 5], GREEDY)
    assert threading.active_count() == threads


def test_jobs_that_wait_for_later_ones_are_refused() -> None:
    with pytest.raises(BadGraph, match="not before"):
        simulate((Job(0, "a", Part(CPU), 1, (0,)),), GREEDY)
