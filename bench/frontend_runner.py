"""Runs a client in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from frontend_client import ClientResult, ClientTask


async def run_client(task: ClientTask) -> ClientResult:
    """Do the task; returns at its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("frontend_client.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(asdict(task)).encode())
    return ClientResult(**json.loads(out))
