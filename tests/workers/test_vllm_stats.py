"""vLLM's metrics as it writes them, read into few numbers."""

import math

import pytest

from workers.vllm_stats import Histogram, read_stats

TEXT = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny/chat"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny/chat"} 2.0
vllm:num_requests_waiting{engine="0",model_name="tiny/chat"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny/chat",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="a \\"quoted\\" name"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny/chat"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="tiny/chat"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="tiny/chat"} 51.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny/chat"} 12.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="tiny/chat"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.2",model_name="tiny/chat"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny/chat"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny/chat"} 0.6
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny/chat"} 4.0
process_open_fds 9.0
nonsense
"""


def test_numbers_of_all_engines_are_added_and_the_fullest_cache_is_told() -> None:
    stats = read_stats(TEXT)
    assert (stats.running, stats.waiting, stats.kv_cache_share) == (5, 7, 0.5)
    assert (stats.prompt_tokens, stats.sampled_tokens, stats.cached_tokens) == (1_200_000, 51, 12)
    assert stats.ttft.count == 4
    assert stats.ttft.mean == pytest.approx(0.15)
    assert stats.tpot.mean is None


def test_what_is_told_can_be_written_down() -> None:
    told = read_stats(TEXT).describe()
    assert told["running"] == 5
    assert (told["ttft_p50"], told["ttft_p95"]) == (pytest.approx(0.1), pytest.approx(0.19))
    assert (told["tpot_p50"], told["queue_mean"]) == (None, None)


def test_a_server_without_such_metrics_has_done_nothing() -> None:
    assert read_stats("").sampled_tokens == 0


def test_a_quantile_lies_within_its_bucket_and_not_beyond_the_last_bound() -> None:
    times = Histogram(buckets={0.5: 1, 1.0: 3, math.inf: 4}, total=9.0)
    assert times.find_quantile(0.25) == pytest.approx(0.5)
    assert times.find_quantile(0.5) == pytest.approx(0.75)
    assert times.find_quantile(1.0) == 1.0
    assert Histogram().find_quantile(0.5) is None


def test_what_came_between_two_readings_is_their_difference_and_a_new_start_is_all_new() -> None:
    earlier = Histogram(buckets={1.0: 3, math.inf: 4}, total=9.0)
    later = Histogram(buckets={1.0: 5, math.inf: 8}, total=15.0)
    between = later.since(earlier)
    assert (between.count, between.total, between.buckets[1.0]) == (4, 6.0, 2)
    assert earlier.since(later) == earlier
