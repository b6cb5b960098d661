"""The kernels of convkern, and the contract each of them keeps.

One operation is one folder; inside it ``reference.py`` is the definition in plain NumPy loops, every ``cpu_*.py`` is one
algorithm for the CPU, and ``VARIANTS`` in its ``__init__.py`` is the table: one row per (algorithm, direction).

A row's ``run`` takes ``(inputs…, bias, residual, spec, workspace, out)`` (``bias`` on forward rows only, ``residual`` on
those of direction "forward_residual") and

- writes every element of ``out``, never allocates the result, never reads outside its inputs;
- receives C-contiguous, aligned, writeable arrays of one floating dtype (the planner's callers see to it), or, where the
  problem's layout says so and the row does not refuse it, images that are all channels-last in memory; a ``spec``
  of plain integers, and a flat ``uint8`` ``workspace`` of at least the bytes that the row asked for, contents undefined;
- gives the same bits for every number of threads: jobs are cut by the problem's shape alone, a job is computed by one
  thread from start to end, and partial sums are added in a fixed order;
- applies the activation that ``spec`` names after the bias, in the same pass (forward rows); adds the residual, an array
  of ``out``'s shape and layout, between them: in the same pass on GPUs, in a second one on the CPU;
- keeps typed accumulators (``dtype(0)``): a bare ``0`` becomes int64 or float64 in Numba.

``out`` never overlaps an input. User errors are raised before a kernel runs, in ``convkern.ops``.

This package imports numpy, numba and itself, and nothing else of convkern. It is reached as ``convkern.kernels``.
"""
