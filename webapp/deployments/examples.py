"""Ready-to-copy calls to a deployment: by curl, and by the client that most programs have."""

import json
from dataclasses import dataclass

from webapp.core.curl import JSON, KEY
from webapp.deployments.models import Deployment

PYTHON = """\
# pip install openai
import os

from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key=os.environ["TINKER_API_KEY"])
stream = client.chat.completions.create(
    model={model},
    messages=[{{"role": "user", "content": "Hello"}}],
    max_tokens=128,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One way to ask."""

    title: str
    text: str


def write_examples(url: str, deployment: Deployment) -> list[Example]:
    """`url` is this installation's, without a slash at its end."""
    model = json.dumps(deployment.name, ensure_ascii=False)
    return [
        Example(title="curl", text=write_curl(url, deployment)),
        Example(title="Python, openai client", text=PYTHON.format(url=url, model=model)),
        Example(title="Promote over REST", text=write_promotion(url, deployment)),
    ]


def write_curl(url: str, deployment: Deployment) -> str:
    question = {
        "model": deployment.name,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 128,
    }
    return f"curl {KEY} {JSON} \\\n  -d {_quote(question)} \\\n  {url}/v1/chat/completions"


def write_promotion(url: str, deployment: Deployment) -> str:
    path = f"{url}/rest/deployments/{deployment.pk}"
    body = _quote({"checkpoint": "ckpt-..."})
    return (
        f"curl {KEY} {JSON} -d {body} \\\n  {path}/promote\n"
        f"curl {KEY} {path}          # until its pending change is null\n"
        f"curl {KEY} -X POST {path}/rollback"
    )


def _quote(body: object) -> str:
    written = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"'{written}'"
