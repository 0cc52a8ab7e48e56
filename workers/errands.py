"""What a recipe's run has done between its steps: checkpoints, samples, evaluations.

Nothing here makes the next step wait, but for the held-out loss, which the device computes.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from training.errors import InvalidInput
from training.recipes.config import RecipeConfig
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.deployments.calls import submit_call
from webapp.deployments.models import SamplingCall
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.services import request_evaluation
from webapp.runs.history import record_metrics
from webapp.runs.models import LogLine, Run
from webapp.runs.services import add_log
from workers.remote import RemoteFuture, RemoteModel

SAVED_NAME = "step-{step:06d}"
SAMPLED_NAME = "sampled-{step:06d}"
SAMPLED_SECONDS = 6 * 3600  # weights that were saved for samples alone; an evaluation may queue
# All weights take too much room to lie there for long; what is asked of them by then holds them.
FULL_SAMPLED_SECONDS = 600

SPACED = str.maketrans("_/", "  ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to happen behind a step."""

    checkpoint: bool = False
    evaluation: bool = False
    samples: bool = False

    @property
    def is_anything(self) -> bool:
        return self.checkpoint or self.evaluation or self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Weights on their way to the disk, and what is to be done with them there."""

    step: int
    saved: RemoteFuture[Checkpoint]
    wanted: Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A checkpoint that was not saved, as the caller is to blame: there was no room for it."""

    step: int
    error: InvalidInput


@dataclass(slots=True, kw_only=True, eq=False)
class Errands:
    """Each is done once, also where a replay comes by again."""

    run: Run
    model: RemoteModel
    config: RecipeConfig
    measure: Callable[[], Mapping[str, float]]  # of what is held out; empty: nothing is
    open: deque[Errand] = field(default_factory=deque)
    refused: Refused | None = None  # the last checkpoint that could not be saved

    def begin(self, *, sampling: bool) -> None:
        """What the run begins with answers the prompts too."""
        if sampling:
            self._ask(0, self.run.parent)

    def run_due(self, step: int, wanted: Wanted) -> None:
        if wanted.is_anything:
            needs_weights = wanted.checkpoint or wanted.samples or self._find_suite() is not None
            if needs_weights:
                saved = self._save(step, wanted)
                self.open.append(Errand(step=step, saved=saved, wanted=wanted))
            if wanted.evaluation:
                self._measure(step)

    def look(self) -> None:
        """Go on with what is saved by now."""
        while self.open and self.open[0].saved.is_over():
            self._go_on(self.open.popleft())

    def finish(self) -> None:
        """InvalidInput where the weights that the run ends with could not be saved."""
        while self.open:
            self._go_on(self.open.popleft())
        if self.refused is not None and self.refused.step == self.model.num_steps:
            raise InvalidInput(f"the last checkpoint could not be saved: {self.refused.error}")

    def _save(self, step: int, wanted: Wanted) -> RemoteFuture[Checkpoint]:
        if wanted.checkpoint:
            return self.model.save_checkpoint(SAVED_NAME.format(step=step), kind="training")
        name = SAMPLED_NAME.format(step=step)
        seconds = FULL_SAMPLED_SECONDS if self.run.is_full else SAMPLED_SECONDS
        return self.model.save_checkpoint(name, kind="sampler", ttl_seconds=seconds)

    def _go_on(self, errand: Errand) -> None:
        try:
            checkpoint = errand.saved.result()
        except InvalidInput as error:
            self._note_refused(errand, error)
            return
        if errand.wanted.checkpoint:
            self.say(f"Saved the checkpoint {checkpoint.name}.", errand.step)
        if checkpoint.deleted_at is not None:
            return  # a replay of long ago: what was asked of it was answered then
        if errand.wanted.samples:
            self._ask(errand.step, checkpoint)
        if errand.wanted.evaluation:
            self._evaluate(errand.step, checkpoint)

    def _note_refused(self, errand: Errand, error: InvalidInput) -> None:
        """No room on the disk is no reason to lose what is being learned: the run goes on."""
        what = "Not saved" if errand.wanted.checkpoint else "No samples and no evaluation"
        self.say(f"{what} after step {errand.step}: {error}", errand.step, LogLine.Level.WARNING)
        if errand.wanted.checkpoint:
            self.refused = Refused(step=errand.step, error=error)

    def _ask(self, step: int, checkpoint: Checkpoint | None) -> None:
        sampling = self.config.sampling
        for index, prompt in enumerate(sampling.prompts):
            about = {"run": self.run.pk, "step": step, "prompt_index": index}
            if SamplingCall.objects.filter(run=self.run, about=about).exists():
                continue
            text = isinstance(prompt, str)
            messages = [{"role": "user", "content": prompt}] if text else list(prompt)
            submit_call(
                project=self.run.project,
                purpose=SamplingCall.Purpose.RUN_SAMPLE,
                base_model=self.run.base_model,
                checkpoint=checkpoint,
                payload={
                    "messages": messages,
                    "num_samples": 1,
                    "params": {
                        "max_tokens": sampling.max_tokens,
                        "temperature": sampling.temperature,
                        "seed": self.config.seed,
                    },
                    "prompt_logprobs": False,
                },
                about=about,
                run=self.run,
            )

    def _measure(self, step: int) -> None:
        measured = self.measure()
        if not measured:
            self.say(f"No held-out loss after step {step}: no row is held out.", step)
            return
        record_metrics(self.run, step, measured)
        self.say(describe_measured(measured, step), step)

    def say(self, text: str, step: int, level: str = LogLine.Level.INFO) -> None:
        """Once, also where a replay comes by again."""
        if not self.run.log_lines.filter(step=step, text=text).exists():
            add_log(self.run, text, level, step=step)

    def _find_suite(self) -> EvalSuite | None:
        suite_id = self.run.config.get("eval_suite")
        if not suite_id:
            return None
        return EvalSuite.objects.filter(project=self.run.project, pk=suite_id).first()

    def _evaluate(self, step: int, checkpoint: Checkpoint) -> None:
        suite = self._find_suite()
        if suite is None:
            return
        if Evaluation.objects.filter(run=self.run, suite=suite, checkpoint=checkpoint).exists():
            return
        try:
            request_evaluation(actor=None, suite=suite, checkpoint=checkpoint, run=self.run)
        except UserError as error:
            add_log(self.run, f"Not evaluated: {error}", LogLine.Level.WARNING, step=step)


def describe_measured(measured: Mapping[str, float], step: int) -> str:
    """What is no number of held-out rows has its name as it is."""
    if not all(key.startswith("held_out") for key in measured):
        told = (f"{key.translate(SPACED)} {value:.4g}" for key, value in measured.items())
        return f"After step {step}: {', '.join(told)}."
    names = [key.removeprefix("held_out").strip("_/") for key in measured]
    first, *others = zip(names, measured.values(), strict=True)
    also = "".join(f", {name} {value:.4g}" for name, value in others)
    return f"Held-out {first[0]} after step {step}: {first[1]:.4g}{also}."
