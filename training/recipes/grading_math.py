"""Whether an answer equals the target as mathematics. For the sandbox: sympy may never end."""

from math_verify import parse, verify

from training.errors import InvalidInput


def math_equal(completion: str, target: str) -> float:
    wanted = parse_math(target)
    if not wanted:
        raise InvalidInput(f"the target {target!r:.60} cannot be read as mathematics")
    # Its own time limits are signals; here the process has one.
    found = parse(completion, parsing_timeout=None)
    return float(bool(found) and verify(wanted, found, timeout_seconds=None))


def parse_math(target: str) -> list[object]:
    """A target is often bare LaTeX, which is only read between dollars."""
    is_marked = "$" in target or "\\boxed" in target or "\\(" in target or "\\[" in target
    texts = [target] if is_marked else [f"${target}$", target]
    for text in texts:
        if parsed := parse(text, fallback_mode="no_fallback", parsing_timeout=None):
            return list(parsed)
    return []
