from __future__ import annotations

import io

from rich.console import Console

from common.clock import ManualClock
from deploy.progress import ProgressDisplay, render
from deploy.progress_state import (
    ProgressState,
    StageLine,
    StageState,
    collect_progress,
    format_duration,
    plain_line,
    run_progress,
    sparkline,
)
from deploy.telemetry_records import ProcessScrape, Scrape, StepRecord


def steps_of(*rewards: float) -> list[StepRecord]:
    return [
        StepRecord(
            time=100.0 + 3.0 * step,
            policy_step=step,
            reward_mean=reward,
            accuracy_mean=reward / 2,
            response_length_mean=20.0 + step,
            lag_max=min(step, 2),
        )
        for step, reward in enumerate(rewards)
    ]


def scrape_at(time: float, tokens: float) -> Scrape:
    process = ProcessScrape(
        role="actor",
        pid=1,
        state="ready",
        generated_tokens=tokens,
        busy_s={"generate": time * 0.75},
        idle_s={"generate": time * 0.25},
    )
    return Scrape(time=time, processes={"actor-0": process})


def test_the_plain_line_tells_step_reward_length_lag_rate_and_time_left() -> None:
    scrapes = [scrape_at(100.0, 0), scrape_at(110.0, 42_000)]
    state = run_progress("run a", steps_of(1.0, 1.2, 1.5), scrapes, num_steps=25, max_policy_lag=2)
    assert plain_line(state) == (
        "run a: step 3/25 | reward 1.500 | accuracy 0.750 | length 22.0 tokens | lag 2"
        " | 4,200 tokens/s | 1:06 left"
    )


def test_before_the_first_step_the_plain_line_tells_who_is_ready() -> None:
    states = {"actor-0": "starting", "broker": "ready"}
    state = ProgressState("run a", process_states=states)
    assert plain_line(state) == "run a: starting | ready: broker | not yet: actor-0"
    assert plain_line(ProgressState("run a")) == ""


def test_a_collecting_run_tells_how_many_prompts_are_answered() -> None:
    groups = {"admitted": 90.0, "leased": 20.0, "pending": 10.0}
    broker = ProcessScrape(role="broker", pid=1, groups=groups)
    scrapes = [Scrape(time=1.0, processes={"broker": broker})]
    state = collect_progress("evaluation", scrapes, num_prompts=512)
    assert plain_line(state) == "evaluation: answered 60/512 prompts | 0 tokens/s"


def test_the_live_display_shows_lag_with_its_bound_and_idle_shares() -> None:
    scrapes = [scrape_at(100.0, 0), scrape_at(110.0, 42_000)]
    state = run_progress("run a", steps_of(1.0, 1.2, 1.5), scrapes, num_steps=25, max_policy_lag=2)
    text = drawn(state)
    assert "3/25" in text
    assert "2 (bound 2)" in text
    assert "actor 25%" in text
    assert "▁▄█" in text


def test_the_live_display_marks_each_stage_of_the_demo() -> None:
    stages = (
        StageLine("corpus", StageState.DONE, 3.0),
        StageLine("train", StageState.RUNNING, 61.0),
        StageLine("evaluate", StageState.PENDING),
    )
    text = drawn(ProgressState("demo", stages=stages))
    assert "✓ corpus" in text
    assert "● train" in text
    assert "1:01" in text
    assert "○ evaluate" in text


def drawn(state: ProgressState) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(render(state))
    return capture.get()


def test_without_a_terminal_a_line_is_printed_every_ten_seconds_and_when_a_stage_ends() -> None:
    output = io.StringIO()
    clock = ManualClock()
    states = iter(
        [
            ProgressState("demo", stages=(StageLine("train", StageState.RUNNING),)),
            ProgressState(
                "demo", stages=(StageLine("train", StageState.DONE, 61.0, "reward 1 -> 2"),)
            ),
            ProgressState("demo", stages=(StageLine("train", StageState.DONE, 61.0),)),
        ]
    )
    console = Console(file=output, force_terminal=False, highlight=False)
    with ProgressDisplay(lambda: next(states), console=console, clock=clock) as display:
        display.tick()
        clock.advance(9.9)
        display.tick()
        clock.advance(0.1)
        display.tick()
    assert output.getvalue().splitlines() == ["● train", "✓ train (1:01): reward 1 -> 2"]


def test_text_from_a_run_is_never_read_as_markup() -> None:
    output = io.StringIO()
    state = ProgressState("run [bold]x[/]", process_states={"broker": "ready"})
    console = Console(file=output, force_terminal=False, highlight=False)
    with ProgressDisplay(lambda: state, console=console, clock=ManualClock()):
        pass
    assert output.getvalue() == "run [bold]x[/]: starting | ready: broker\n"
    assert "[bold]x[/]" in drawn(state)


def test_a_sparkline_spans_its_range_and_is_averaged_down() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(100)], width=32)) == 32


def test_durations_read_like_a_clock() -> None:
    assert format_duration(75.2) == "1:15"
    assert format_duration(3700) == "1:01:40"
    assert format_duration(-1) == "0:00"
