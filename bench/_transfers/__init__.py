"""What bench/transfers.py is made of: contestants, the two processes, the work, and networks to do it in."""
