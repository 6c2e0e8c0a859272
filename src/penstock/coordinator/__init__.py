"""One job over many nodes: who takes which samples, for how long, and what is done.

``rules`` decides, as a pure function; ``journal`` keeps what was decided; a server around both answers nodes.
"""
