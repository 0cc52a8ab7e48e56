"""Off-policy distillation with soft targets: the teacher's likeliest tokens on a file's chats."""

import asyncio

import chz
from tinker_cookbook.distillation import train_off_policy
from tinker_cookbook.distillation.datasets import TeacherConfig
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig


@chz.chz
class Settings:
    log_path: str
    model_name: str
    renderer_name: str
    rows: str
    teacher: str


def build(settings: Settings) -> train_off_policy.Config:
    chats = FromConversationFileBuilder(
        file_path=settings.rows,
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=settings.model_name,
            renderer_name=settings.renderer_name,
            max_length=256,
            batch_size=16,
        ),
    )
    teacher = TeacherConfig(base_model=settings.model_name, load_checkpoint_path=settings.teacher)
    pair = train_off_policy.DatasetWithTeacher(dataset_builder=chats, teacher_config=teacher)
    return train_off_policy.Config(
        log_path=settings.log_path,
        model_name=settings.model_name,
        renderer_name=settings.renderer_name,
        recipe_name="off_policy_distillation",
        dataset_configs=[pair],
        n_teacher_targets=4,
        learning_rate=5e-3,
        lora_rank=8,
        batch_size=16,
        max_steps=4,
        eval_every=0,
    )


asyncio.run(train_off_policy.main(build(chz.entrypoint(Settings))))
