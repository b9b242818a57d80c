"""Fused CPU kernels compiled by Numba, and the program that runs them on one pool of threads.

Nothing here is imported until a step is compiled with the extra ``fast``. ``abi.py`` says what a
kernel is, ``engine.py`` runs lists of them, ``lowering.py`` turns recorded calls of the contract's
kernels into them; the other files hold the kernels, by subject.
"""
