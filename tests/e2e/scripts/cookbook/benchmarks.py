"""Two benchmarks at once, kept on disk, and taken up again where they stand."""

import asyncio
import json

import chz
import tinker
from tinker_cookbook import renderers
from tinker_cookbook.eval import BenchmarkConfig, run_benchmarks
from tinker_cookbook.tokenizer_utils import get_tokenizer


@chz.chz
class Settings:
    save_dir: str
    model_name: str
    renderer_name: str
    checkpoint: str | None = None


async def main(settings: Settings) -> None:
    service = tinker.ServiceClient()
    sampler = await service.create_sampling_client(
        base_model=settings.model_name, model_path=settings.checkpoint
    )
    renderer = renderers.get_renderer(settings.renderer_name, get_tokenizer(settings.model_name))
    config = BenchmarkConfig(save_dir=settings.save_dir, max_examples=16, max_tokens=16)
    results = await run_benchmarks(["gsm8k", "mmlu_pro"], sampler, renderer, config)
    told = {
        name: [each.score, each.num_examples, each.num_errors] for name, each in results.items()
    }
    print(json.dumps(told))


asyncio.run(main(chz.entrypoint(Settings)))
