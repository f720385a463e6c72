"""Which jobs are not tried again, and for how long."""

from __future__ import annotations

from actors.verification.pool import QuarantinedJobs


def test_a_job_is_remembered_for_its_time_and_no_other_is() -> None:
    jobs = QuarantinedJobs(seconds=10.0)
    jobs.add(b"deadly", now=100.0)
    assert jobs.holds(b"deadly", now=109.9)
    assert not jobs.holds(b"harmless", now=100.0)
    assert not jobs.holds(b"deadly", now=110.0)
    assert not jobs.holds(b"deadly", now=100.0)  # forgotten for good


def test_the_oldest_is_forgotten_when_there_are_too_many() -> None:
    jobs = QuarantinedJobs(seconds=10.0, capacity=2)
    for name in (b"a", b"b", b"a", b"c"):
        jobs.add(name, now=0.0)
    assert [jobs.holds(name, now=1.0) for name in (b"a", b"b", b"c")] == [True, False, True]
