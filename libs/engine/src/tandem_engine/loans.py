"""Blocks that are lent to someone outside of the engine's thread, who reads or fills them while steps are computed.

A loan counts as one more holder of a sequence's whole table: whatever becomes of the sequence meanwhile (cancelled,
preempted), its blocks are given to nobody else before the loan is back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tandem_engine.block_pool import BlockPool


@dataclass(slots=True, eq=False)
class Loan:
    """A table as it was when it was first lent; several borrowers of one request share it."""

    request_id: str
    block_ids: Sequence[int]
    num_borrowers: int = 0


class Loans:
    """All loans of one pool. Not thread-safe."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._open: set[Loan] = set()
        self._latest: dict[str, Loan] = {}  # by request, while its table is as it was

    def lend(self, request_id: str, block_ids: Sequence[int]) -> Loan:
        """Lend the blocks of a request's table, which holds them now; each call is one borrower."""
        loan = self._latest.get(request_id)
        table = array("q", block_ids)
        if loan is None or loan.block_ids != table:
            loan = self._latest[request_id] = Loan(request_id, table)
            self._open.add(loan)
            self._pool.hold(block_ids)
        loan.num_borrowers += 1
        return loan

    def give_back(self, loan: Loan) -> None:
        """One borrower is done."""
        loan.num_borrowers -= 1
        if loan.num_borrowers == 0:
            self._open.remove(loan)
            if self._latest.get(loan.request_id) is loan:
                del self._latest[loan.request_id]
            self._pool.release(loan.block_ids)

    def tables(self) -> Iterable[Sequence[int]]:
        """What is lent, as holders of blocks."""
        return (loan.block_ids for loan in self._open)
