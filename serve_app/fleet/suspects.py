"""Requests of one model under suspicion: from the death of their replica to their next token, or to their refusal."""

import contextlib
from collections.abc import AsyncIterator

from serve_app.fleet.journal import Entry
from serve_app.fleet.quarantine import Quarantine, Verdict
from serve_app.fleet.suspicion import Suspicion, digest_of


class Suspects:
    """Keeps `Entry.suspicion` and the shared quarantine in step."""

    def __init__(self, model: str, quarantine: Quarantine) -> None:
        self._model = model
        self._quarantine = quarantine

    def screen(self, entry: Entry) -> None:
        """Look up whether requests like this one are refused, or suspected."""
        if self._quarantine:
            verdict = self._quarantine.verdict(self._digest(entry))
            entry.refused = verdict is Verdict.REFUSED
            if verdict is Verdict.SUSPECTED:
                entry.suspicion = Suspicion.ALONE

    @contextlib.asynccontextmanager
    async def turn(self, entry: Entry) -> AsyncIterator[None]:
        """Screen a request before it goes to a replica, and hold it back while another like it is being tried."""
        self.screen(entry)
        if entry.suspicion is not Suspicion.ALONE:
            yield
            return
        async with self._quarantine.turn(self._digest(entry)):
            self.screen(entry)
            yield

    def replica_died(self, entry: Entry) -> bool:
        """Note that a request's replica died; whether it is known by now to be what kills, and refused."""
        if not entry.begun:
            return False
        place, before = len(entry.tokens), entry.died_at
        entry.died_at = place
        if place > entry.base and place != before:
            entry.suspicion = Suspicion.TOGETHER
        elif place > entry.base or entry.suspicion is Suspicion.ALONE:
            # It began anew and came to where it was when the first replica died, or was the only one to blame.
            entry.refused = True
            self._quarantine.find(self._digest(entry), Verdict.REFUSED)
        else:
            entry.suspicion = Suspicion.ALONE
            self._quarantine.find(self._digest(entry), Verdict.SUSPECTED)
        return entry.refused

    def answered(self, entry: Entry) -> None:
        """A request under suspicion has given a token."""
        if entry.held:  # the word that its turn had come was lost
            entry.begin()
        if entry.suspicion is Suspicion.ALONE:
            self._quarantine.find(self._digest(entry), Verdict.CLEARED)
        entry.suspicion = Suspicion.NONE

    def _digest(self, entry: Entry) -> bytes:
        return digest_of(self._model, entry.request)
