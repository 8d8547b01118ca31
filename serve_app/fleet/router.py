"""Serve's extension point for routing, where a replica for each call of the fleet client is chosen.

The class is made in every process that has a handle of a model's replicas. Serve ships this module there by value; all
that it knows comes with the calls.
"""

from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

ROUTER = "serve_app.fleet.router:FleetRouter"


class FleetRouter(FIFOMixin, RequestRouter):
    """Asks the hint that comes with a call; calls without one go to the replica with the fewest.

    Requests that several calls are made for, such as one with n choices, have one id in Serve, by which the router's
    own way to match calls and replicas would lose some: the first call that waits takes the replica instead.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or pending_request.kwargs.get("hint") is None:
            return [candidate_replicas]
        hint, offer = pending_request.kwargs["hint"], pending_request.future
        if hint.offer not in {None, offer} and not hint.offer.cancelled():
            # The future is a new one where the replica that Serve last chose for this call did not take it.
            refusing = hint.offer.result()
            if (self.replica_queue_len_cache.get(refusing.replica_id) or 0) < refusing.max_ongoing_requests:
                hint.not_taken(refusing.replica_id.unique_id)
        hint.offer = offer
        # Where none may be chosen, Serve asks again, and would do so without a pause.
        pending_request.routing_context.should_backoff = True
        replicas = {each.replica_id.unique_id: each for each in candidate_replicas}
        for each in candidate_replicas:
            if self.replica_queue_len_cache.get(each.replica_id) is None:
                # Serve would ask the replica, and another call could take what was chosen for this one meanwhile.
                # A replica that has too many refuses, and Serve asks it from then on.
                self.replica_queue_len_cache.update(each.replica_id, 0)
        return [[replicas[name]] for name in hint.order(list(replicas))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if (hint := pending_request.kwargs.get("hint")) is not None:
            hint.sent(replica_id.unique_id)
