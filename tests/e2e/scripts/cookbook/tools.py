"""Tool use: a model learns to call a tool from chats, then by reinforcement in an environment."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import chz
from tinker_cookbook import checkpoint_utils, renderers
from tinker_cookbook.renderers import Message, Renderer, get_renderer, get_text_content
from tinker_cookbook.rl import train
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.tool_use import ToolResult, build_agent_tool_env, simple_tool_result, tool

RENDERER = "qwen3_instruct"
CALL = '<tool_call>\n{"name": "open_box", "arguments": {}}\n</tool_call>'
QUESTIONS = ["What is in the box?", "Look into the box.", "The box, please.", "Open it."]


@chz.chz
class Settings:
    log_path: str
    model_name: str


@tool
async def open_box() -> ToolResult:
    """Say what is in the box."""
    return simple_tool_result("an apple", metrics={"opened": 1.0})


async def grade(history: list[Message]) -> tuple[float, dict[str, float]]:
    told = get_text_content(history[-1])
    found = float("apple" in told)
    called = sum(message["role"] == "tool" for message in history)
    return found, {"found": found, "calls": float(called)}


def open_chat(renderer: Renderer, question: str) -> list[Message]:
    prefix = renderer.create_conversation_prefix_with_tools([open_box.to_spec()])
    return [*prefix, {"role": "user", "content": question}]


class Boxes(EnvGroupBuilder):
    def __init__(self, renderer: Renderer, question: str) -> None:
        self.renderer = renderer
        self.question = question

    async def make_envs(self) -> Sequence[Env]:
        return [
            build_agent_tool_env(
                renderer=self.renderer,
                tools=[open_box],
                initial_messages=open_chat(self.renderer, self.question),
                reward_fn=grade,
                max_turns=3,
            )
            for _ in range(4)
        ]


class BoxDataset(RLDataset):
    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return [Boxes(self.renderer, question) for question in QUESTIONS]

    def __len__(self) -> int:
        return 2


@chz.chz
class BoxDatasetBuilder(RLDatasetBuilder):
    model_name: str

    async def __call__(self) -> tuple[RLDataset, None]:
        return BoxDataset(make_renderer(self.model_name)), None


def make_renderer(model_name: str) -> Renderer:
    return get_renderer(RENDERER, get_tokenizer(model_name))


def write_chats(path: Path, renderer: Renderer) -> None:
    """As an agent's logs have them: the call, what the tool said, the answer."""
    with path.open("w") as file:
        for question in QUESTIONS:
            turns = [
                *open_chat(renderer, question),
                {"role": "assistant", "content": CALL},
                {"role": "tool", "content": "an apple"},
                {"role": "assistant", "content": "It is an apple."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def build_warm_up(settings: Settings, chats: Path) -> supervised.Config:
    return supervised.Config(
        log_path=str(chats.parent / "chats"),
        model_name=settings.model_name,
        renderer_name=RENDERER,
        recipe_name="tools_chats",
        dataset_builder=FromConversationFileBuilder(
            file_path=str(chats),
            common_config=ChatDatasetBuilderCommonConfig(
                model_name_for_tokenizer=settings.model_name,
                renderer_name=RENDERER,
                max_length=1024,
                batch_size=4,
                train_on_what=renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES,
            ),
        ),
        learning_rate=5e-3,
        lr_schedule="constant",
        lora_rank=8,
        num_epochs=30,
        save_every=0,
        eval_every=0,
    )


def build(settings: Settings, weights: str) -> train.Config:
    return train.Config(
        log_path=settings.log_path,
        model_name=settings.model_name,
        renderer_name=RENDERER,
        recipe_name="tools",
        dataset_builder=BoxDatasetBuilder(model_name=settings.model_name),
        load_checkpoint_path=weights,
        learning_rate=1e-4,
        max_tokens=64,
        eval_every=0,
    )


settings = chz.entrypoint(Settings)
folder = Path(settings.log_path + "-chats")
folder.mkdir()
write_chats(folder / "chats.jsonl", make_renderer(settings.model_name))
warm_up = build_warm_up(settings, folder / "chats.jsonl")
asyncio.run(supervised.main(warm_up))
last = checkpoint_utils.get_last_checkpoint(warm_up.log_path)
asyncio.run(train.main(build(settings, last.state_path)))
