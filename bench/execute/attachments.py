"""What hangs on a network beside its layers: of a method's, nothing may be left once it is detached."""

from __future__ import annotations

from torch import Tensor, fx, nn


def attachments(network: nn.Module) -> set[str]:
    """In words: the hooks of a network, its parameters, the buffers that are saved with it, and the calls of single
    modules that are not those of their class."""
    modules = dict(network.named_modules())
    hooks = {
        f"{len(found)} {kind}{'' if len(found) == 1 else 's'} on {path or 'the network'!r}"
        for path, module in modules.items()
        for kind, found in (
            ("forward hook", module._forward_hooks),
            ("forward pre-hook", module._forward_pre_hooks),
            ("backward hook", module._backward_hooks),
            ("backward pre-hook", module._backward_pre_hooks),
            ("state-dict hook", module._state_dict_hooks),
            ("state-dict pre-hook", module._state_dict_pre_hooks),
            ("load-state-dict pre-hook", module._load_state_dict_pre_hooks),
            ("load-state-dict hook", module._load_state_dict_post_hooks),
        )
        if found
    }
    calls = {
        f"a forward of its own on {path or 'the network'!r}"
        for path, module in modules.items()
        if "forward" in vars(module)
    }
    buffers = {
        _buffer(path, name)
        for path, module in modules.items()
        for name, value in module._buffers.items()
        if value is not None and name not in module._non_persistent_buffers_set and not _traced(module, name)
    }
    return hooks | calls | buffers | {f"the parameter {name!r}" for name, _ in network.named_parameters()}


def own_tensors(network: nn.Module) -> set[str]:
    """The tensors that are mere attributes, in the words of `attachments`: they become buffers where units that go
    during training leave a `GraphModule`."""
    return {
        _buffer(path, name)
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _buffer(path: str, name: str) -> str:
    return f"the buffer {(f'{path}.{name}' if path else name)!r}"


def _traced(module: nn.Module, name: str) -> bool:
    """Whether the buffer is a constant of the code that a `GraphModule` stands for."""
    return isinstance(module, fx.GraphModule) and name.startswith("_tensor_constant")
