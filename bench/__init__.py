"""Benchmarks: what a kernel is worth beside its rivals, over the project's one shape table.

``cases`` is the table, ``rivals`` what is compared, ``measure`` the clock; ``convkern bench`` runs them. Reached as
``convkern.bench``.
"""
