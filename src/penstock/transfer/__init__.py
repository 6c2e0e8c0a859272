"""Memory moved one-sidedly between processes and hosts, with deadlines, generations and notifications."""

from penstock.transfer.agent import Agent, Notification
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.operation import Transfer
from penstock.transfer.peer import Peer, Prepared
from penstock.transfer.registration import Registration

__all__ = ["Agent", "Descriptors", "Notification", "Peer", "Prepared", "Registration", "Transfer"]
