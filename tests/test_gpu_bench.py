"""The stages of bench/gpu.sh as far as they go without a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from .gpu import interpreted, needs_compiler


def primitives():
    from convkern.bench.gpu import primitives

    return primitives


@needs_compiler
@pytest.mark.parametrize(("needed", "target"), [(70, "sm_80"), (80, "sm_80"), (80, "sm_90a"), (90, "sm_90a")])
def test_primitives_are_right_in_the_interpreter(needed, target):
    module = primitives()
    place = module.Place(np.copy, np.asarray)
    with interpreted(target):
        for check in module.CHECKS[needed].values():
            check(place, np.random.default_rng(7))


@needs_compiler
def test_primitives_are_no_kernels_of_the_library():
    from convkern.kernels.cuda.kernel import KERNELS

    primitives().kernel("copy")
    assert not [name for name in KERNELS if name.startswith("primitive")]


@needs_compiler
@pytest.mark.parametrize(("needed", "name"), [(80, "ldmatrix"), (80, "mma.sync TF32"), (90, "wgmma float16")])
def test_a_wrong_primitive_is_told_with_its_place(needed, name):
    module = primitives()

    def off_by_one(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[-1] += 1
        return array

    with interpreted("sm_90a"), pytest.raises(AssertionError, match=r"1 of \d+ values are wrong, the first at \("):
        module.CHECKS[needed][name](module.Place(np.copy, off_by_one), np.random.default_rng(7))
