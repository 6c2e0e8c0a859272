"""The rules of a job, as one pure function: ``apply(state, event, now)``.

No clock, no randomness, no I/O: the same state, event and time give the same outcome, on every machine. Whoever calls
it keeps ``changes`` safe before it sends ``reply``, so what was answered is never forgotten. Where there are none it
makes sure that it still leads, for a reply renews a lease, and another leader wouldn't know of that.

What always holds, whatever happens in whatever order:

- each sample of the epoch is in exactly one place: done, in a lease, in a queue, or spare;
- a cursor never goes back, and only its holder moves it, with the fence of its lease;
- a lease ends when all of it is done, when its holder leaves, or when its ``ttl_s`` have passed since a report of it
  was last accepted; what is left of it is the next to be granted;
- a report isn't accepted any more when the cursor stands still for ``idle_lease_s``, or when its holder's place was
  taken by another process. Neither ends a lease at once, for its holder may believe in it until the ttl has passed;
- a live node's queue is its own, unless ``steal``.
"""

from penstock.coordinator.rules.beginning import MAX_BLOCKS
from penstock.coordinator.rules.leases import MAX_WANT
from penstock.coordinator.rules.outcome import Outcome, apply, begin

__all__ = ["MAX_BLOCKS", "MAX_WANT", "Outcome", "apply", "begin"]
