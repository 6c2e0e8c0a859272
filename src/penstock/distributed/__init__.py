"""A loader, and work, that many nodes share through a coordinator."""
