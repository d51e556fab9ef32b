"""Starts programs, keeps them running, and stops them without leaving anything behind.

process_spec    what to start (pure)
restart_backoff when to start it again (pure)
launcher        the few lines that run in the child before the program does
child_process   one running program
supervisor      all of them
"""

from tandem_cli.supervisor.child_process import StartFailed
from tandem_cli.supervisor.process_spec import Facts, ProcessSpec
from tandem_cli.supervisor.restart_backoff import RestartBackoff
from tandem_cli.supervisor.supervisor import (
    Crashed,
    Event,
    Killed,
    ProcessState,
    Ready,
    Started,
    Supervisor,
)

__all__ = [
    "Crashed",
    "Event",
    "Facts",
    "Killed",
    "ProcessSpec",
    "ProcessState",
    "Ready",
    "RestartBackoff",
    "StartFailed",
    "Started",
    "Supervisor",
]
