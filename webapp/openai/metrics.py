"""How long a call took, as Fireworks' clients read it: their concurrency follows the queue."""

from datetime import datetime

from webapp.openai.forms import Result


def describe_metrics(result: Result) -> dict[str, str]:
    """Seconds, and counts, as texts. What is not known is left out."""
    ended = result.ended
    spans = {
        "prefill-queue-duration": count_seconds(ended.created_at, ended.started_at),
        "server-time-to-first-token": count_seconds(ended.created_at, ended.first_token_at),
        "prefill-duration": count_seconds(ended.started_at, ended.first_token_at),
        "generation-duration": count_seconds(ended.first_token_at, ended.finished_at),
        "server-processing-time": count_seconds(ended.created_at, ended.finished_at),
    }
    return {
        "prompt-tokens": str(result.num_prompt_tokens),
        "cached-prompt-tokens": str(result.num_cached_tokens),
        "num-concurrent-requests": str(result.num_concurrent),
        **{name: f"{seconds:.4f}" for name, seconds in spans.items() if seconds is not None},
    }


def count_seconds(since: datetime | None, until: datetime | None) -> float | None:
    if since is None or until is None:
        return None
    return (until - since).total_seconds()
