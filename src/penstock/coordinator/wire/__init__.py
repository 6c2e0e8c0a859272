"""What nodes and a coordinator say to each other: ``coordinator.proto``, what is generated from it, and ``convert``."""
