"""Which sample stands where in an epoch, who takes it, and what of it is done: pure functions of a few numbers.

``order`` has what every order is, and the permutation; ``draws``, ``block_order``, ``by_length`` and ``mixed`` are the
others, ``sampler`` and ``mixture`` what a user says to get them. ``split`` cuts positions into steps of ranks,
``state`` says which are done, ``quality`` how random an order is. Nothing here reads a byte of a sample.
"""
