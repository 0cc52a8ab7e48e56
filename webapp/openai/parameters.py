"""Sampling parameters of a request, in range or refused by name; and what is not offered here."""

import secrets
from collections.abc import Iterable
from typing import Any

from training.sample_requests import MAX_TOPK, check_params
from training.types import SamplingParams
from webapp.core.errors import UserError
from webapp.core.fields import LARGEST, Fields

MAX_SAMPLES = 128
MAX_PROMPTS = 256
SEED_BITS = 48

# What would change the answer if it were followed. A value that asks for nothing is no matter.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "images": ([],),
    "modalities": (["text"],),
}


def refuse_unsupported(fields: Fields, more: dict[str, tuple[Any, ...]] | None = None) -> None:
    for name, harmless in (UNSUPPORTED | (more or {})).items():
        if fields.has(name) and fields.values[name] not in harmless:
            raise UserError(f"{name} is not supported here: leave it out.", field=name)


def refuse_format(fields: Fields) -> None:
    """Answers in a given form would need a grammar in the sampling server."""
    kind = fields.inner("response_format").text("type", "text")
    if kind != "text":
        raise UserError(
            f"response_format of type {kind[:60]} is not supported here: leave it out, and ask for"
            " the form in the prompt.",
            field="response_format",
        )


def read_params(fields: Fields, *, max_tokens: int | None, is_streamed: bool) -> dict[str, Any]:
    """As a sampling call's payload keeps them. `max_tokens` None: up to the context."""
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0),
        top_p=fields.number("top_p", 1.0),
        top_k=fields.whole("top_k", -1, least=-1) or -1,
        seed=read_seed(fields, is_streamed),
        stop=read_stop(fields),
    )
    check_params(params)
    stop = None if params.stop is None else list(params.stop)
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "seed": params.seed,
        "stop": stop,
    }


def read_seed(fields: Fields, is_streamed: bool) -> int | None:
    """A stream whose server is lost goes on where it was: the same numbers are drawn again."""
    if fields.has("seed"):
        return fields.whole("seed", least=-LARGEST) & LARGEST
    return secrets.randbits(SEED_BITS) if is_streamed else None


def read_stop(fields: Fields) -> tuple[str, ...] | None:
    """None: the model's end token alone stops. An empty one, of vLLM's ignore_eos: nothing does."""
    stop = fields.values.get("stop")
    stops = (stop,) if isinstance(stop, str) else tuple(fields.list_of("stop", str))
    if not fields.flag("ignore_eos", False):
        return stops or None
    if stops:
        raise UserError("ignore_eos with stop is not supported here: send one.", field="ignore_eos")
    return ()


def read_topk(fields: Fields, name: str) -> int:
    return fields.whole(name, 0, most=MAX_TOPK)


def check_count(prompts: Iterable[Any], num_samples: int) -> None:
    count = len(list(prompts)) * num_samples
    if count > MAX_PROMPTS:
        raise UserError(
            f"prompt and n ask for {count} samples: at most {MAX_PROMPTS} are made for a request.",
            field="n",
        )
