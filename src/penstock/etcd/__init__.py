"""etcd v3, for whoever keeps something there: requests within deadlines, by its JSON gateway."""

from penstock.etcd.gateway import Endpoint, Gateway, Message, Stream, parse_endpoints

__all__ = ["Endpoint", "Gateway", "Message", "Stream", "parse_endpoints"]
