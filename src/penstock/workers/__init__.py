"""User code beside the loader: what a transform is given and gives, and the processes that run it.

``sample`` is what a transform sees, ``results`` lays what it returns into memory that was charged, ``wire`` is how a
loader and its worker processes talk, ``child`` is what such a process does, and ``pool`` is the loader's side of them.
A worker process imports this package, NumPy, and what the transform itself needs; nothing else of Penstock.
"""
