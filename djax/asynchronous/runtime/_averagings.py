"""One worker's averagings: it finds partners, and exchanges models with them."""

from dataclasses import dataclass, field

import jax
import numpy as np

from djax.transport import Transport

from ._members import Members, Say
from ._model import Buffers, Model
from ._pairing import Kind, Messages, Pairing
from ._record import Record


@dataclass(eq=False)
class Averagings:
    """Carries out the averagings that the pairing decides on.

    Two workers exchange their models before either of them applies the averaging. In
    place of a model that is not finite, a worker only sends the news that it is not.
    Both workers then leave the averaging out: if only one of them averaged, sums over
    the workers would change.

    Args:
      model: the model of this worker.
      members: this worker's view of all workers.
      transport: carries the messages.
      record: where the averagings are noted.
      pairing: decides with which neighbour this worker averages.

    Attributes:
      pairing: the same pairing.
    """

    _model: Model
    _members: Members
    _transport: Transport
    _record: Record
    pairing: Pairing
    _sent: Buffers | None = None  # This worker's model, once it is sent.
    _met_at: float = 0.0
    # The partners' models, or None if they are not finite.
    _models: dict[int, list[np.ndarray] | None] = field(default_factory=dict)
    # The last model that was received.
    _in_use: list[np.ndarray] = field(default_factory=list)

    def demand(self, peer: int | None) -> None:
        """Demands one more averaging, with any neighbour if `peer` is None."""
        self._speak(self.pairing.demand(peer))

    def finish(self) -> None:
        """Ends this worker's demands for averagings."""
        if not self.pairing.done:
            self._speak(self.pairing.finish())

    def hear(self, sender: int, kind: Kind) -> None:
        """Takes in a message of the pairing protocol."""
        self._speak(self.pairing.receive(sender, kind))

    def hear_model(self, sender: int, buffers: list[np.ndarray] | None) -> None:
        """Takes in a neighbour's model, or None if the model is not finite."""
        self._models[sender] = buffers

    def lose(self, peer: int) -> None:
        """Removes a lost worker, even in the middle of an averaging with it."""
        self._models.pop(peer, None)
        met = self.pairing.partner == peer
        self._speak(self.pairing.forget(peer))
        if met:
            self._sent = None
            self._speak(self.pairing.ended())

    def advance(self) -> None:
        """Exchanges models with the current partner, and then with the next ones."""
        while (peer := self.pairing.partner) is not None:
            if self._sent is None:
                self._send(peer)
            if peer not in self._models:
                return
            received = self._models.pop(peer)
            if received is not None and self._model.sent_finite:
                self._in_use = received
                self._model.receive(self._model.packing.view(received))
                self._record.averaging(peer, self._met_at)
            else:
                self._model.keep()
                self._transport.recycle(received or [])
            self._sent = None
            self._speak(self.pairing.ended())

    def _send(self, peer: int) -> None:
        self._met_at = self._record.now()
        self._sent = self._model.send()
        # When this is computed, no program reads the last received model any more.
        jax.block_until_ready(self._sent)
        self._transport.recycle(self._in_use)
        self._in_use = []
        finite = self._model.sent_finite
        self._members.say(peer, Say.MODEL, finite, buffers=self._sent if finite else ())

    def _speak(self, messages: Messages) -> None:
        for peer, kind in messages:
            if peer in self._members.others:
                self._members.say(peer, Say.PAIR, kind)
