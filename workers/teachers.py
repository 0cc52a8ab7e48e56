"""Who teaches a run: a checkpoint of its project or a base model, by any of its names."""

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.recipes.distillation import Teacher
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run
from workers.keep_going import KeepGoing
from workers.remote import Waiter
from workers.samplers import RemoteSampler


def open_teacher(run: Run, name: str, *, waiter: Waiter, keep: KeepGoing) -> Teacher:
    """Empty: what the run begins with."""
    base_model, checkpoint = find_teacher(run, name)
    sampler = RemoteSampler(
        project=run.project,
        run=run,
        base_model=base_model,
        checkpoint=checkpoint,
        waiter=waiter,
        keep_going=keep,
    )
    return Teacher(sampler=sampler, tokenizer=ChatTokenizer.load(base_model.path))


def find_teacher(run: Run, name: str) -> tuple[BaseModel, Checkpoint | None]:
    if not name:
        return run.base_model, run.parent
    checkpoint = Checkpoint.objects.loadable().filter(project=run.project).find_named(name)
    if checkpoint is not None:
        return checkpoint.base_model, checkpoint
    base_model = BaseModel.objects.filter(names__name=name).order_by().first()
    if base_model is None:
        raise InvalidInput(
            f"the teacher {name!r:.80} is neither a checkpoint of the project nor a base model"
        )
    return base_model, None


def speaks_alike(run: Run, teacher: Teacher, own: ChatTokenizer) -> bool:
    """Whether the teacher's tokens are the student's."""
    sampler = teacher.sampler
    assert isinstance(sampler, RemoteSampler)
    if sampler.base_model.pk == run.base_model_id:
        return True
    return teacher.tokenizer.tokenizer.to_str() == own.tokenizer.to_str()
