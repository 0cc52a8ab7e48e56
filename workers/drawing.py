"""One call's samples drawn from a server, told on the way where somebody watches."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from training.data.tokenizer import ChatTokenizer
from training.data.tool_calls import MARK
from training.types import SampleOutput, SampleRequest
from webapp.deployments.models import HotLoad, SamplingCall
from webapp.deployments.pieces import Piece
from workers.answers import Answer, make_answer
from workers.both_logprobs import complete_both
from workers.describing import CUT, list_tools
from workers.streaming import Watched, can_stream
from workers.vllm import SamplingServer


@dataclass(slots=True, kw_only=True)
class Drawing:
    """A call on its way. Drawn again, it tells its pieces again: they say where they belong."""

    call: SamplingCall
    request: SampleRequest
    tokenizer: ChatTokenizer
    tell: Callable[[str, Piece], None]
    first_token_at: datetime | None = None

    async def sample(self, server: SamplingServer, model: str) -> SampleOutput:
        if not (self.call.is_streamed and can_stream(self.request)):
            output = await server.generate(model, self.request)
            return await complete_both(server, model, self.request, output)
        watched = Watched(
            tokenizer=self.tokenizer,
            tell=partial(self.tell, self.call.request_id),
            marks=(MARK,) if list_tools(self.call, self.tokenizer) else (),
            is_cut=self.call.purpose in CUT,
        )
        output = await watched.sample(server, model, self.request)
        self.first_token_at = self.first_token_at or watched.first_token_at
        return output

    def make_answer(self, output: SampleOutput, load: HotLoad | None = None) -> Answer:
        return make_answer(
            self.call,
            self.request,
            output,
            self.tokenizer,
            load=load,
            first_token_at=self.first_token_at,
        )
