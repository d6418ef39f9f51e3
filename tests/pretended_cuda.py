"""A GPU that is not there: tensors on it have a type, a shape and a device, but no numbers.

What runs on the CPU runs as it is. What touches the device is followed by torch's FakeTensorMode, which refuses tensors
on different devices, and whatever makes the host wait for the device is noted with the function of ``simsiam`` that it
happens in: numbers and tensors that are read back (they are 1 and zeros here, or what ``answers`` says), shapes that
depend on values, copies to the device that are not ``non_blocking``, indices on the CPU, and decompositions, which look
whether they have succeeded. The bytes of all tensors on the device are counted; workspaces of libraries are not.

What it cannot tell: numbers, kernels, streams, and whatever a custom kernel or a collective does by itself.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).parent.parent
CUDA = torch.device("cuda", 0)
READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")
SHAPES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
DECOMPOSITIONS = ("_linalg_check_errors", "_linalg_eigh", "linalg_cholesky_ex", "_linalg_svd", "linalg_inv_ex")
COPIES = ("_to_copy", "to")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")

# Of torch.autocast's lists, what networks and losses use: https://docs.pytorch.org/docs/stable/amp.html
IN_BFLOAT16 = {F.conv2d, F.linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm}
IN_FLOAT32 = {F.cross_entropy, torch.softmax, Tensor.softmax, torch.log_softmax, Tensor.log_softmax, Tensor.exp}


class _Autocast(TorchFunctionMode):
    """What torch.autocast does on a GPU; that itself looks for tensors that torch's C++ takes to be on one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled("cuda") or func not in IN_BFLOAT16 | IN_FLOAT32:
            return func(*args, **kwargs)
        wanted = torch.float32 if func in IN_FLOAT32 else torch.get_autocast_dtype("cuda")

        def cast(leaf: Any) -> Any:
            eligible = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
            return leaf.to(wanted) if eligible and leaf.device.type == "cuda" else leaf

        return func(*tree_map(cast, args), **tree_map(cast, kwargs))


class Wait(tuple[str, str]):
    """Where the host waits, ``folder/module.py:function``, and for which operation."""


class PretendedCuda(TorchDispatchMode):
    """See above. ``waits``: how often the host waited, by place and operation; ``peak``: the most bytes at a time."""

    def __init__(self, answers: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.answers = answers or {}  # by place: the number that is read there
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[Wait] = Counter()
        self.bytes = self.peak = 0
        self.types: dict[str, set[torch.dtype]] = {}  # of what each operation on the device gave
        self._storages: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return _device_for_torch(args[0])
        args, kwargs = tree_map(_on_cuda, (args, kwargs or {}))
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:  # in ``everything``
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        moves = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not moves and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        name = func.name().partition("::")[2].partition(".")[0]
        on_device = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        if on_device:
            if name in READS:
                return self._read(name, args[0])
            if self._comes_back(name, args, kwargs):
                return self._bring_back(name, args, kwargs)
            if name == "nonzero":
                self._wait(name)
                num, dim = args[0].numel(), args[0].dim()
                return self._made(name, torch.ops.aten.new_zeros.default, (args[0], (num, dim)), {"dtype": torch.long})
            if name in INDEXED:
                args = (args[0], self._indices(name, args[1]), *args[2:])
            elif name in (*SHAPES, *DECOMPOSITIONS) or func is torch.ops.aten.repeat_interleave.Tensor:
                self._wait(name)
        if self._blocks(name, args, kwargs, moves):
            self._wait(f"{name} to the device")
        return self._made(name, func, args, kwargs)

    def _made(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = self.fake.__torch_dispatch__(func, (), *tree_map(self._without_numbers, (args, kwargs)))
        for made in tree_leaves(result):
            if isinstance(made, FakeTensor) and made.device.type == "cuda":
                self.types.setdefault(name, set()).add(made.dtype)
                storage = made.untyped_storage()
                if storage not in self._storages:
                    self._storages[storage] = None
                    self._count(storage.nbytes())
                    weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _without_numbers(self, leaf: Any) -> Any:
        known = isinstance(leaf, FakeTensor) or not isinstance(leaf, Tensor)
        return leaf if known else self.fake.from_tensor(leaf)

    def _count(self, num: int) -> None:
        self.bytes += num
        self.peak = max(self.peak, self.bytes)

    def _wait(self, name: str) -> None:
        self.waits[Wait((place(), name))] += 1

    def _read(self, name: str, tensor: Tensor) -> Any:
        self._wait(name)
        answer = self.answers.get(place(), 1)
        if name in ("is_nonzero", "equal") or tensor.dtype == torch.bool:
            return bool(answer)
        return float(answer) if tensor.is_floating_point() else int(answer)

    def _comes_back(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in COPIES:
            return torch.device(kwargs.get("device") or args[0].device).type == "cpu"
        return name == "copy_" and args[0].device.type == "cpu" and args[1].device.type == "cuda"

    def _bring_back(self, name: str, args: Any, kwargs: Any) -> Tensor:
        self._wait(f"{name} from the device")
        if name == "copy_":
            return args[0]
        # Sizes and strides as they were: torch.save and numpy look at both.
        back = torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return back if not args[0].dim() else back.contiguous()

    def _blocks(self, name: str, args: Any, kwargs: Any, moves: bool) -> bool:
        """Whether this is a copy from the host's memory that the host waits for."""
        if name in COPIES:
            return moves and args[0].device.type == "cpu" and not kwargs.get("non_blocking")
        if name == "copy_" and args[0].device.type == "cuda" and args[1].device.type == "cpu":
            return not (kwargs.get("non_blocking") or args[2:3] == (True,))
        return False

    def _indices(self, name: str, indices: Any) -> list[Tensor | None]:
        """Indices on the CPU are copied while the host waits; masks are turned into places, all of them here."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.device.type == "cpu":
                self._wait(f"{name} by places on the CPU")
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._wait(f"{name} by a mask")
                zeros = self.fake.__torch_dispatch__(
                    torch.ops.aten.new_zeros.default, (), (index, (index.numel(),)), {"dtype": torch.long}
                )
                found += [zeros] * index.dim()
            else:
                found.append(index)
        return found

    @contextlib.contextmanager
    def watching(self) -> Iterator[PretendedCuda]:
        """Within it, ``waits`` and ``types`` are those of what happens here alone."""
        before, self.waits, self.types = (self.waits, self.types), Counter(), {}
        watched = self.waits
        try:
            yield self
        finally:
            self.waits = before[0] + watched
            self.types = before[1]

    def follows_convolutions(self) -> bool:
        """Whether torch can: 2.9, built for CUDA, asks the driver how it would convolve, whatever the tensors."""
        try:
            with self.everything():
                image = torch.zeros(1, 1, 3, 3, device=CUDA, dtype=torch.bfloat16)
                F.conv2d(image, image)
        except torch.AcceleratorError:
            return False
        return True

    @contextlib.contextmanager
    def everything(self) -> Iterator[None]:
        """Within it no tensor has numbers, not even on the CPU: for networks that would take long to make."""
        with self.fake:
            yield


def place() -> str:
    """The innermost function of ``simsiam`` that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "simsiam"):
            names = {"<genexpr>", "<listcomp>", "<dictcomp>", "<lambda>"}
            inner = frame
            while frame.f_code.co_name in names and frame.f_back is not None:
                frame = frame.f_back
            path = Path(frame.f_code.co_filename) if frame is not inner else path
            return f"{path.relative_to(ROOT / 'simsiam')}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the test"


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which for tensors without numbers wants to exchange them in place, and cannot."""
    for child in module.children() if recurse else ():
        _apply(child, fn)
    for name, weight in module._parameters.items():
        if weight is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(fn(weight), weight.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


def _copied(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """copy.deepcopy of a tensor, which by itself copies the storage."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return memo[id(tensor)]


def _on_cuda(leaf: Any) -> Any:
    return CUDA if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf


_dispatch = FakeTensor.__torch_dispatch__


def _dispatch_as_meta(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    if func is torch.ops.prim.device.default:
        return _device_for_torch(args[0])
    return _dispatch(func, types, args, kwargs or {})


def _device_for_torch(tensor: FakeTensor) -> torch.device:
    """torch's own C++ is told "meta" where Python is told "cuda": autograd would look for streams of a real GPU."""
    device = tensor.fake_device
    return torch.device("meta") if device.type == "cuda" or tensor.fake_mode.in_kernel_invocation else device


@contextlib.contextmanager
def pretended_cuda(answers: Mapping[str, float] | None = None) -> Iterator[PretendedCuda]:
    """Within it there is a device "cuda" that can do bfloat16, whose tensors have no numbers."""
    if torch.cuda.is_available():
        torch.cuda.init()  # before its place is taken below
    pretended = PretendedCuda(answers)
    lifts = torch._C._only_lift_cpu_tensors()
    patches = (
        mock.patch("torch.cuda._lazy_init", return_value=None),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(FakeTensor, "__deepcopy__", _copied, create=True),
        mock.patch.object(FakeTensor, "__torch_dispatch__", classmethod(_dispatch_as_meta)),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device="cuda") comes by here, too
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(pretended)
        stack.enter_context(_Autocast())
        yield pretended
