"""Chains of elementwise kernels: what they are, before a device writes them as a loop of its own.

``layouts.py`` says how operands lie over one another, ``expressions.py`` what is done to an
element, ``chain.py`` puts both together. Nothing here knows a device.
"""
