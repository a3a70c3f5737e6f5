"""The logger of the library, and one call that makes it print."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

logger = logging.getLogger("delayed")
logger.addHandler(logging.NullHandler())

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, message, pid, and whatever was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        data = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
        }
        data |= {key: value for key, value in vars(record).items() if key not in _PLAIN_FIELDS}
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, default=repr, ensure_ascii=False)


def set_handler(handler: logging.Handler, level: int | str = logging.INFO) -> None:
    """Send the library's log to `handler` only, from `level` on."""
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def setup_logger(
    level: int | str = logging.INFO,
    log_format: str = LOG_FORMAT,
    date_format: str = DATE_FORMAT,
    *,
    as_json: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Print the library's log.

    Args:
        level: the least level to print.
        log_format: a format of the :mod:`logging` module; not used with `as_json`.
        date_format: a format of :func:`time.strftime`; not used with `as_json`.
        as_json: print one JSON object a line instead.
        stream: where to; None means standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(log_format, date_format))
    set_handler(handler, level)
