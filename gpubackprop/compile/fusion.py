"""Chains of elementwise calls as one."""


def fused(calls, results, report):
    return calls
