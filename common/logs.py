"""Structured logs: one event a line, as JSON in files and readable on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog

from common.log_stream import log_stream


def configure_logs(run_id: str, role: str, name: str) -> structlog.stdlib.BoundLogger:
    """Set up logging of this process and return its logger with the fixed fields bound."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", log_stream(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger(run_id=run_id, role=role, process=name)
    return cast("structlog.stdlib.BoundLogger", logger)
