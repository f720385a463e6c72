from __future__ import annotations

import pytest

from deploy.run_analysis import (
    between,
    counter_increases,
    lag_histogram,
    observed_s,
    peak_rss_bytes,
    role_times,
    seconds_left,
    series,
    token_rates,
    tokens_per_second,
    training_window,
)
from deploy.telemetry_records import SILENT, ProcessScrape, Scrape, StepRecord


def actor(tokens: float, *, pid: int = 1, state: str = "ready") -> ProcessScrape:
    return ProcessScrape(role="actor", pid=pid, state=state, generated_tokens=tokens)


def scrapes_of(*processes: ProcessScrape) -> list[Scrape]:
    return [
        Scrape(time=100.0 + 2.0 * index, processes={"actor-0": process}, rss_bytes=index)
        for index, process in enumerate(processes)
    ]


def test_a_restarted_process_counts_from_zero_again() -> None:
    scrapes = scrapes_of(actor(100), actor(160), actor(30, pid=2), actor(50, pid=2))
    grown = counter_increases(scrapes, lambda process: process.generated_tokens)
    assert grown == {"actor-0": 60 + 30 + 20}


def test_a_process_that_did_not_answer_is_not_taken_for_zero() -> None:
    scrapes = scrapes_of(actor(100), actor(0, state=SILENT), actor(160))
    grown = counter_increases(scrapes, lambda process: process.generated_tokens)
    assert grown == {"actor-0": 60}


def test_tokens_per_second_is_growth_over_time() -> None:
    assert tokens_per_second(scrapes_of(actor(0), actor(400), actor(1200))) == 300.0
    assert tokens_per_second(scrapes_of(actor(5))) == 0.0


def test_the_time_between_a_stop_and_a_resume_does_not_count() -> None:
    first, second, third = scrapes_of(actor(0), actor(400), actor(400))
    resumed = [
        Scrape(time=third.time + 500.0, processes={"actor-0": actor(0, pid=2)}),
        Scrape(time=third.time + 502.0, processes={"actor-0": actor(200, pid=2)}),
    ]
    scrapes = [first, second, *resumed]
    assert observed_s(scrapes) == 4.0
    assert tokens_per_second(scrapes) == 150.0
    assert role_times(scrapes)["actor"].idle_s == 4.0


def test_token_rates_slide_over_a_window() -> None:
    scrapes = scrapes_of(actor(0), actor(200), actor(600))
    assert token_rates(scrapes, window_s=2.0) == [(102.0, 100.0), (104.0, 200.0)]


def test_busy_and_idle_time_of_a_role_is_summed_over_its_processes() -> None:
    def look(time: float, busy_s: float) -> Scrape:
        def process(pid: int) -> ProcessScrape:
            return ProcessScrape(
                role="actor", pid=pid, busy_s={"generate": busy_s}, idle_s={"wait": time - busy_s}
            )

        return Scrape(time=time, processes={"actor-0": process(1), "actor-1": process(2)})

    times = role_times([look(0.0, 0.0), look(10.0, 8.0)])
    assert times["actor"].busy_s == 16.0
    assert times["actor"].busy_ratio == 0.8
    assert times["actor"].idle_ratio == pytest.approx(0.2)


def test_waiting_that_is_in_no_counter_yet_is_waiting_all_the_same() -> None:
    def look(time: float, busy_s: float) -> Scrape:
        broker = ProcessScrape(role="verifier", pid=1, busy_s={"verify": busy_s}, cpu_s=77.0)
        return Scrape(time=time, processes={"verifier-0": broker})

    assert role_times([look(0.0, 0.0), look(10.0, 1.0)])["verifier"].idle_ratio == 0.9


def test_a_role_without_counters_works_while_it_uses_a_processor() -> None:
    def look(time: float, cpu_s: float) -> Scrape:
        broker = ProcessScrape(role="broker", pid=1, cpu_s=cpu_s)
        return Scrape(time=time, processes={"broker": broker})

    assert role_times([look(0.0, 3.0), look(10.0, 5.0)])["broker"].busy_ratio == 0.2


def test_the_window_of_scrapes_reaches_over_both_ends() -> None:
    scrapes = scrapes_of(*[actor(0)] * 6)
    assert [item.time for item in between(scrapes, 103.0, 105.0)] == [102.0, 104.0, 106.0]


def test_training_begins_when_its_first_batch_is_waited_for_and_sampled() -> None:
    steps = [StepRecord(time=110.0, policy_step=0, seconds={"wait": 9.0, "compute": 0.5})]
    scrapes = scrapes_of(actor(0), actor(0), actor(10), actor(20))
    assert training_window(steps, scrapes) == (104.0, 110.0)
    assert training_window([], scrapes) is None


def test_the_lag_histogram_adds_up_all_batches() -> None:
    steps = [
        StepRecord(time=0.0, policy_step=0, lag_histogram={"0": 5}),
        StepRecord(time=1.0, policy_step=1, lag_histogram={"1": 7, "0": 2}),
    ]
    assert lag_histogram(steps) == {0: 7, 1: 7}


def test_time_left_follows_the_median_pace() -> None:
    steps = [StepRecord(time=t, policy_step=i) for i, t in enumerate([0.0, 2.0, 4.0, 24.0])]
    assert seconds_left(steps, num_steps=10) == 6 * 2.0
    assert seconds_left(steps[:1], num_steps=10) is None


def test_the_memory_peak_is_the_largest_sample() -> None:
    assert peak_rss_bytes(scrapes_of(actor(0), actor(0))) == 1
    assert peak_rss_bytes([]) == 0


def test_a_series_leaves_out_batches_without_the_value() -> None:
    steps = [
        StepRecord(time=0.0, policy_step=0, accuracy_mean=0.5),
        StepRecord(time=1.0, policy_step=1),
        StepRecord(time=2.0, policy_step=2, accuracy_mean=0.7),
    ]
    assert series(steps, lambda step: step.accuracy_mean) == [(0, 0.5), (2, 0.7)]
