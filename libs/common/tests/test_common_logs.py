"""One line per event, with what every line has; whatever is in it."""

import json
import re
import subprocess
import sys

import pytest

HEAD = """
from tandem_common.logs import bound_request, configure_logging, get_logger
log = get_logger("part")
configure_logging("router", level="info", format="json")
"""


def lines(script: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stderr.split("\n") if line]


def test_a_line_says_who_wrote_it_when_and_for_which_request() -> None:
    script = """
with bound_request("r-1"):
    log.info("routed", num_tokens=3, cost=1.5, prefill=None)
    log.warning("odd", request_id="r-2")
log.debug("not this one")
"""
    first, second = lines(script)
    stamp = first.pop("timestamp")
    assert isinstance(stamp, str)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    assert first == {
        "event": "routed",
        "level": "info",
        "component": "part",
        "service": "router",
        "request_id": "r-1",
        "num_tokens": 3,
        "cost": 1.5,
        "prefill": None,
    }
    assert (second["level"], second["request_id"]) == ("warning", "r-2")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'\\ud800'", "\ud800"),
        ("2**70", 2**70),
        ("{1, 1}", "{1}"),
        ("'a\\nb\\u2028'", "a\nb\u2028"),
        ("{1: b'x'}", {"1": "b'x'"}),
    ],
)
def test_whatever_is_logged_is_one_line_of_json(value: str, expected: object) -> None:
    (line,) = lines(f"log.info('odd', value={value})")
    assert line["value"] == expected


def test_an_exception_is_part_of_its_line() -> None:
    (line,) = lines("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')\n")
    assert line["level"] == "error"
    (exception,) = line["exception"]  # type: ignore[misc]
    assert exception["exc_type"] == "ZeroDivisionError"


def test_times_of_lines_do_not_go_back_and_name_their_second() -> None:
    stamps = [
        line["timestamp"]
        for line in lines("import time\nfor _ in range(4):\n    log.info('x')\n    time.sleep(0.4)")
    ]
    assert stamps == sorted(set(stamps), key=str)  # type: ignore[type-var]
    assert len({str(stamp)[:19] for stamp in stamps}) > 1


def test_a_console_gets_the_same_facts() -> None:
    script = HEAD.replace('"json"', '"console"') + "log.info('hello', n=3)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert all(part in done.stderr for part in ("hello", "n", "3", "router", "part"))
