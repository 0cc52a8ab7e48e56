"""Tests against the real vLLM, on the CPU."""
