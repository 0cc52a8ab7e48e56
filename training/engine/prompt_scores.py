"""What is asked about a prompt's tokens, computed as the prompt is read, with one projection.

Row i speaks of the prompt's token i + 1. Shapes: P rows, R rows of a piece, D hidden size,
V vocabulary, K columns.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.engine.sampling import draw_many, seed_draws
from training.types import FloatArray, IntArray, SampleRequest, TokenLogprobs

PROJECTED_ROWS = 64  # [64, 150,000] float32 is 38 MB

Project = Callable[[Tensor], Tensor]  # hidden states to logits in float32


class PromptScores:
    """One request's answers about its prompt. Rows that were scored are not scored again."""

    def __init__(self, request: SampleRequest) -> None:
        length = len(request.prompt)
        self.request = request
        self.num_done = 0
        # The last row speaks of no token of the prompt.
        self.first = length - 1 - (request.prompt_logprobs_last_n or length - 1)
        self.wanted = find_wanted(request, self.first)
        self.logprobs: list[float | None] = [None] * length
        self.topk = TokenLogprobs.make_empty(length, request.topk_prompt_logprobs)
        self.targets = Targets(request) if request.target_prompt_logprobs is not None else None
        self.alt = TokenLogprobs.make_empty(length - 1, request.prompt_alt_tokens_k)
        self.draws = seed_draws(request.params.seed, "alternatives")

    @property
    def first_wanted(self) -> int | None:
        """The first row whose hidden state is needed; None: no row's."""
        rows = np.flatnonzero(self.wanted[self.num_done :])
        return self.num_done + int(rows[0]) if len(rows) else None

    def read(self, begin: int, hidden_RD: Tensor, project: Project) -> None:
        """Rows `begin` and on have been computed: take what is wanted of them."""
        stop = begin + len(hidden_RD)
        rows_P = np.flatnonzero(self.wanted[:stop])
        rows_P = rows_P[rows_P >= max(begin, self.num_done)]
        self.num_done = max(self.num_done, stop)
        for start in range(0, len(rows_P), PROJECTED_ROWS):
            rows_R = rows_P[start : start + PROJECTED_ROWS]
            places = torch.from_numpy(rows_R - begin).to(hidden_RD.device)
            self._score(rows_R, project(hidden_RD[places]))

    def _score(self, rows_R: IntArray, logits_RV: Tensor) -> None:
        logprobs_RV = logits_RV.sub_(logits_RV.logsumexp(1, keepdim=True))
        ranked = int(np.searchsorted(rows_R, self.first))
        self._keep_prompt(rows_R[ranked:], logprobs_RV[ranked:])
        if self.targets is not None:
            self.targets.read(rows_R, logprobs_RV)
        if self.request.prompt_alt_tokens_k:
            self._draw(rows_R, logprobs_RV)

    def _keep_prompt(self, rows_R: IntArray, logprobs_RV: Tensor) -> None:
        if not len(rows_R):
            return
        tokens = [self.request.prompt[row + 1] for row in rows_R.tolist()]
        if self.request.prompt_logprobs:
            chosen = torch.tensor(tokens, device=logprobs_RV.device)[:, None]
            values = logprobs_RV.gather(1, chosen)[:, 0].tolist()
            self.logprobs[rows_R[0] + 1 : rows_R[-1] + 2] = values
        if self.request.topk_prompt_logprobs:
            keep_topk(self.topk, rows_R + 1, logprobs_RV)

    def _draw(self, rows_R: IntArray, logprobs_RV: Tensor) -> None:
        shape = (len(rows_R), self.request.prompt_alt_tokens_k)
        draws = [[self.draws.random() for _ in range(shape[1])] for _ in range(shape[0])]
        tokens_RK = draw_many(logprobs_RV, self.request.params.temperature, draws)
        self.alt.token_ids[rows_R] = tokens_RK.cpu().numpy()
        self.alt.logprobs[rows_R] = logprobs_RV.gather(1, tokens_RK).cpu().numpy()


class Targets:
    """The log-probabilities of the tokens that a request names, cell by cell."""

    def __init__(self, request: SampleRequest) -> None:
        targets = request.target_prompt_logprobs
        assert targets is not None
        self.cells = np.flatnonzero(targets.ids >= 0)
        self.rows = targets.find_rows()[self.cells]
        self.ids = targets.ids[self.cells]
        self.logprobs: FloatArray = np.zeros(len(targets.ids), np.float32)

    def read(self, rows_R: IntArray, logprobs_RV: Tensor) -> None:
        start, stop = np.searchsorted(self.rows, (rows_R[0], rows_R[-1] + 1))
        if start == stop:
            return
        device = logprobs_RV.device
        places = torch.from_numpy(np.searchsorted(rows_R, self.rows[start:stop])).to(device)
        ids = torch.from_numpy(self.ids[start:stop]).to(device)
        self.logprobs[self.cells[start:stop]] = logprobs_RV[places, ids].cpu().numpy()


def find_wanted(request: SampleRequest, first: int) -> NDArray[np.bool_]:
    """Which rows have to be projected at all."""
    wanted = np.zeros(len(request.prompt) - 1, bool)
    if request.prompt_logprobs or request.topk_prompt_logprobs:
        wanted[first:] = True
    if request.target_prompt_logprobs is not None:
        targets = request.target_prompt_logprobs
        wanted[targets.find_rows()[targets.ids >= 0]] = True
    if request.prompt_alt_tokens_k:
        wanted[:] = True
    return wanted


def keep_topk(table: TokenLogprobs, rows_R: IntArray, logprobs_RV: Tensor) -> None:
    """The likeliest tokens, likeliest first; a small vocabulary leaves the last cells empty."""
    k = min(table.token_ids.shape[1], logprobs_RV.shape[1])
    best = logprobs_RV.topk(k, dim=1)
    table.token_ids[rows_R, :k] = best.indices.cpu().numpy()
    table.logprobs[rows_R, :k] = best.values.cpu().numpy()
