"""What a prefix cache could find at best: the bound to hold a router's hit rate against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tandem_load.traffic import TrafficRequest


def shared_cache_hit_rate(requests: Sequence[TrafficRequest], num_blocks: int | None = None) -> float:
    """Share of prompt tokens found if all workers shared one cache with least-recently-used eviction.

    Blocks are the requests' segments; each prompt is cached at once, and its last token is always computed.
    `num_blocks` bounds the cache; None: it forgets nothing.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    num_found = num_tokens = 0
    for request in requests:
        size = request.segment_tokens
        num_tokens += request.num_prompt_tokens
        for segment in request.segments[: (request.num_prompt_tokens - 1) // size]:
            if segment not in cache:
                break
            num_found += size
        # The deepest first, so that no block outlives its parent.
        for segment in reversed(request.segments[: request.num_prompt_tokens // size]):
            cache[segment] = None
            cache.move_to_end(segment)
        while num_blocks is not None and len(cache) > num_blocks:
            cache.popitem(last=False)
    return num_found / num_tokens if num_tokens else 0.0
