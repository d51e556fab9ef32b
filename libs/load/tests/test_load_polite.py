import os
import sys

import pytest
from tandem_load.polite import be_polite


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such class")
def test_it_does_not_preempt_others_afterwards() -> None:
    child = os.fork()  # for this process it would be for good
    if child == 0:
        be_polite()
        os._exit(os.sched_getscheduler(0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == os.SCHED_BATCH


def test_nothing_happens_where_it_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setscheduler", raising=False)
    be_polite()
