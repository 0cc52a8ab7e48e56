"""What the engine checks before it computes; the rules themselves are shared with the web."""

from training.requests import LOGPROBS, LOSS_INPUTS, LossInputs, check_request, find_scored

__all__ = ["LOGPROBS", "LOSS_INPUTS", "LossInputs", "check_request", "find_scored"]
