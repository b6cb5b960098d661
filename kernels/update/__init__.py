"""The steps of the optimizers: one parallel loop over all parameters of a model, each number read and written once.

There is one way to do each, so there is no table: :mod:`cpu_chunks` is called directly, ``reference`` is its definition.
"""
