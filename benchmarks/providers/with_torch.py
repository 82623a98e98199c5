"""PyTorch, eager, with images in its channels_last format; forward and backward only.

Its forward mode lacks some of these operations and turns others to float32.
"""

from functools import partial

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.programs import ARGUMENTS, Inputs, Program
from benchmarks.settings import count_cores
from benchmarks.shapes import Case, Mode

EPS = 1e-5
MOMENTUM = 0.01  # PyTorch's word for the weight of the new value


def compile_program(case: Case, mode: Mode, inputs: Inputs) -> Program | None:
    """Return a program that runs a case, None where PyTorch has no such operation."""
    if case.devices > 1 or mode == "jvp":
        return None
    torch.set_num_threads(count_cores())
    call = _forward if mode == "forward" else _forward_backward

    def place():
        return [_tensor(inputs[name]) for name in ARGUMENTS[mode]]

    return Program(partial(call, partial(_apply, case)), place, place(), _name_results)


def _name_results(results) -> dict[str, np.ndarray]:
    named = zip(("y", "dx", "dscale", "dbias"), results, strict=False)
    return {name: _array(value) for name, value in named if value is not None}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array.copy())
    return tensor.to(_device())


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _apply(case: Case, x, scale, bias, mean, var) -> torch.Tensor:
    if case.op == "layer_norm":
        return F.layer_norm(x, (case.features,), scale, bias, EPS)
    if case.op == "rms_norm":
        # Its fused kernel wants a scale of the input's dtype.
        return F.rms_norm(x, (case.features,), scale.to(x.dtype), EPS)
    last = x.ndim - 1
    # A view: an NHWC array is what PyTorch calls NCHW in channels_last format.
    x = x.movedim(last, 1) if last > 1 else x
    if case.op == "group_norm":
        y = F.group_norm(x, case.groups, scale, bias, EPS)
    elif case.op == "instance_norm":
        y = F.instance_norm(x, None, None, scale, bias, True, 0.0, EPS)
    else:
        training = case.op != "batch_norm_eval"
        y = F.batch_norm(x, mean, var, scale, bias, training, MOMENTUM, EPS)
        y = F.relu(y) if case.op == "batch_norm_relu" else y
    return y.movedim(1, last) if last > 1 else y


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forward(function, *arrays):
    with torch.no_grad():
        y = function(*arrays)
    _synchronize()
    return (y,)


def _forward_backward(function, *arrays):
    *arguments, cotangent = arrays
    parameters = [array.detach().requires_grad_() for array in arguments[:3]]
    y = function(*parameters, *arguments[3:])
    grads = torch.autograd.grad(y, parameters, cotangent, allow_unused=True)
    _synchronize()
    return y, *grads
