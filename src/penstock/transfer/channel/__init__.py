"""A bounded stream of messages from one agent into a ring of slots in another's memory, with back-pressure.

::

    receiver = channel.Receiver(agent, slots=64, slot_bytes=1 << 20)   # here, and ``receiver.offer()`` goes to ...
    sender = channel.Sender(agent, offer)                              # ... there

The receiver sees each message where it lies and frees its slot when it is done; the sender waits while no slot is free.
"""

from penstock.transfer.channel.receiver import Message, Receiver
from penstock.transfer.channel.sender import Sender, Slot

__all__ = ["Message", "Receiver", "Sender", "Slot"]
