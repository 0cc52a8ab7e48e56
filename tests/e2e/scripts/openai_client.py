"""What a user of OpenAI's own client does, with nothing changed but a base URL and a key."""

import asyncio
import json
from typing import Any

import openai

MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]
PROMPT = "Hello, how are you?"


def refuse(**fields: Any) -> dict[str, Any]:
    client = openai.OpenAI(max_retries=0)
    try:
        client.completions.create(**fields)
    except openai.APIStatusError as error:
        return {"kind": type(error).__name__, "param": error.param, "text": error.message}
    return {}


def complete(client: openai.OpenAI, model: str) -> dict[str, Any]:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": 12, "seed": 5, "n": 2}
    whole = client.completions.create(**asked, logprobs=1)
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    return {
        "whole": [choice.text for choice in whole.choices],
        "streamed": [streamed[0], streamed[1]],
        "num_logprobs": [len(choice.logprobs.token_logprobs) for choice in whole.choices],
        "usage": whole.usage.completion_tokens,
    }


def chat(client: openai.OpenAI, model: str) -> dict[str, Any]:
    asked = {"model": model, "messages": MESSAGES, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text, usage = "", None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options=options):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    return {
        "whole": whole.choices[0].message.content,
        "streamed": text,
        "likely": [each.token for each in whole.choices[0].logprobs.content[0].top_logprobs],
        "usage": [whole.usage.total_tokens, usage.total_tokens],
    }


async def ask_many(model: str) -> list[str]:
    async with openai.AsyncOpenAI() as client:
        questions = [f"What is {a} + 2?" for a in range(1, 8)]
        asking = (
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": each}], temperature=0
            )
            for each in questions
        )
        answers = await asyncio.gather(*asking)
    return [each.choices[0].message.content for each in answers]


def main() -> None:
    client = openai.OpenAI()
    models = [model.id for model in client.models.list()]
    model = models[0]
    report = {
        "models": models,
        "model": client.models.retrieve(model).id,
        "completions": complete(client, model),
        "chat": chat(client, model),
        "many": asyncio.run(ask_many(model)),
        "unknown": refuse(model="nobody", prompt="x"),
        "suffix": refuse(model=model, prompt="x", suffix="y"),
        "key": {},
    }
    try:
        openai.OpenAI(api_key="tml-wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        report["key"] = {"status": error.status_code, "code": error.code}
    print(json.dumps(report))


main()
