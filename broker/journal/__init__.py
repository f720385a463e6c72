"""The broker's write-ahead log: segment files that survive kill -9, a crash and a full disk.

Bottom up: ``files`` (what a disk can do), ``records`` (bytes), ``log_disk``, ``spare`` and
``segments`` (files of an open log), ``scan`` and ``recovery`` (how one is opened, and what is
refused), ``index`` (what is live), ``staging``, ``log_writer``, ``log_reader`` and ``compaction``
(what goes in, comes out and is let go of), ``log`` (keyed records and turns, of anything),
``event_turns`` and ``journal`` (events, payloads and snapshots).
"""

from broker.journal.journal import Journal

__all__ = ["Journal"]
