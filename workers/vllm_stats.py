"""What a sampling server says of itself: vLLM's Prometheus metrics, read and named in few words."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Sample = tuple[str, Mapping[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many took at most how many seconds: {bound: count}, all of them at infinity."""

    buckets: Mapping[float, float] = field(default_factory=dict)
    total: float = 0.0

    @property
    def count(self) -> int:
        return int(self.buckets.get(math.inf, 0))

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def find_quantile(self, share: float) -> float | None:
        """In seconds, as if the values of a bucket lay evenly in it."""
        wanted, bounds = share * self.count, sorted(self.buckets)
        if not self.count:
            return None
        for low, high in pairwise([0.0, *bounds]):
            before, upto = self.buckets.get(low, 0.0), self.buckets[high]
            if upto >= wanted:
                if math.isinf(high):
                    return low
                inside = (wanted - before) / (upto - before) if upto > before else 1.0
                return low + inside * (high - low)
        return None

    def since(self, earlier: "Histogram") -> "Histogram":
        """What came between; all of it, where the server has begun anew."""
        if earlier.count > self.count:
            return self
        buckets = {
            bound: count - earlier.buckets.get(bound, 0.0) for bound, count in self.buckets.items()
        }
        return Histogram(buckets=buckets, total=self.total - earlier.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """Counts are since the server's start. Times are in seconds, None while there are none."""

    running: int = 0
    waiting: int = 0
    kv_cache_share: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts': they were not read again
    sampled_tokens: int = 0
    preemptions: int = 0
    ttft: Histogram = field(default_factory=Histogram)  # time to the first token
    tpot: Histogram = field(default_factory=Histogram)  # time per token after it
    queue: Histogram = field(default_factory=Histogram)

    def describe(self) -> dict[str, Any]:
        """As JSON, for a row."""
        told = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if not isinstance(getattr(self, name), Histogram)
        }
        for name in ("ttft", "tpot"):
            times: Histogram = getattr(self, name)
            told |= {
                f"{name}_mean": times.mean,
                f"{name}_p50": times.find_quantile(0.5),
                f"{name}_p95": times.find_quantile(0.95),
            }
        return told | {"queue_mean": self.queue.mean}  # its buckets begin at 0.3 s: no quantiles


def read_stats(text: str) -> ServerStats:
    """Of the text that /metrics answers; several engines behind one server are added up."""
    samples = list(iterate_samples(text))
    shares = [value for name, _, value in samples if name == "vllm:kv_cache_usage_perc"]
    return ServerStats(
        running=int(add_up(samples, "num_requests_running")),
        waiting=int(add_up(samples, "num_requests_waiting")),
        kv_cache_share=max(shares, default=0.0),
        prompt_tokens=int(add_up(samples, "prompt_tokens_total")),
        cached_tokens=int(add_up(samples, "prefix_cache_hits_total")),
        sampled_tokens=int(add_up(samples, "generation_tokens_total")),
        preemptions=int(add_up(samples, "num_preemptions_total")),
        ttft=read_histogram(samples, "time_to_first_token_seconds"),
        tpot=read_histogram(samples, "request_time_per_output_token_seconds"),
        queue=read_histogram(samples, "request_queue_time_seconds"),
    )


def iterate_samples(text: str) -> Iterator[Sample]:
    for line in text.splitlines():
        found = LINE.match(line)
        if found and not line.startswith("#"):
            labels = dict(LABEL.findall(found["labels"] or ""))
            yield found["name"], labels, float(found["value"])


def add_up(samples: list[Sample], name: str) -> float:
    return sum(value for found, _, value in samples if found == f"vllm:{name}")


def read_histogram(samples: list[Sample], name: str) -> Histogram:
    buckets: dict[float, float] = {}
    for found, labels, value in samples:
        if found == f"vllm:{name}_bucket":
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    return Histogram(buckets=buckets, total=add_up(samples, f"{name}_sum"))
