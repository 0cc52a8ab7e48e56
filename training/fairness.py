"""Whose turn it is: fair by tokens, between groups by their shares and inside a group evenly.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): who is served pays in virtual time,
tokens over share, and the one with the least goes next. Who comes back after a while has no
credit from it, only an equal start; what was overdrawn stays owed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Account:
    """`spent` is virtual time: tokens over share."""

    share: float = 1.0
    spent: float = 0.0

    def charge(self, tokens: float) -> None:
        self.spent += tokens / self.share


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Accounts of one level. `clock`: what everybody who was here all the time has spent."""

    accounts: dict[str, Account] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    clock: float = 0.0

    def join(self, name: str, share: float) -> None:
        account = self.accounts.setdefault(name, Account())
        account.share = share
        if name not in self.present:
            account.spent = max(account.spent, self.clock)
            self.present.add(name)

    def leave(self, name: str) -> None:
        self.present.discard(name)
        self._forget_settled()

    def charge(self, name: str, tokens: float) -> None:
        self.accounts[name].charge(tokens)
        if self.present:
            least = min(self.accounts[each].spent for each in self.present)
            self.clock = max(self.clock, least)

    def _forget_settled(self) -> None:
        """Who is away and owes nothing begins like a stranger."""
        for name in self.accounts.keys() - self.present:
            if self.accounts[name].spent <= self.clock:
                del self.accounts[name]


@dataclass(slots=True, kw_only=True)
class Shares:
    """Groups, such as projects, and the runs of each. Only who is present has a turn."""

    groups: Ledger = field(default_factory=Ledger)
    runs: dict[str, Ledger] = field(default_factory=dict)  # by group
    group_of: dict[str, str] = field(default_factory=dict)

    def join(self, run: str, *, group: str, share: float = 1.0) -> None:
        """It waits for turns from now on. A share that changed counts from now on."""
        self.group_of[run] = group
        self.groups.join(group, share)
        self.runs.setdefault(group, Ledger()).join(run, 1.0)

    def leave(self, run: str) -> None:
        group = self.group_of.pop(run, None)
        if group is None:
            return
        runs = self.runs[group]
        runs.leave(run)
        if not runs.present:
            self.groups.leave(group)
            for each in self.runs.keys() - self.groups.accounts.keys():
                del self.runs[each]

    def charge(self, run: str, tokens: float) -> None:
        group = self.group_of[run]
        self.groups.charge(group, tokens)
        self.runs[group].charge(run, tokens)

    def sort(self, runs: Iterable[str]) -> list[str]:
        """Who has had least first; among equals in the given order."""
        return sorted(runs, key=self._measure)

    def find_next(self, runs: Iterable[str]) -> str:
        return min(runs, key=self._measure)

    def _measure(self, run: str) -> tuple[float, float]:
        group = self.group_of[run]
        return self.groups.accounts[group].spent, self.runs[group].accounts[run].spent
