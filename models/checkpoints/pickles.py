"""Reads the pickle inside a torch checkpoint without executing anything.

A pickle is a program for a stack machine, and two of its instructions call whatever the file names.
Here the machine is ours and has no call: the few functions that rebuild tensors are answered with
records of where the tensor lies, and every other class or function becomes an `Inert` object that
knows its name. Nothing is imported, and no attribute of anything is looked up or set. The standard
unpickler with its names restricted would not do: a file of a hundred bytes makes it allocate
gigabytes for its memo, and it hashes and calls what the file built.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field

__all__ = ["Global", "Inert", "PickledStorage", "PickledTensor", "Unpickled", "read_pickle"]


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a class or function, as module.name; never the thing itself."""

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """What the file would have made by calling `name`."""

    name: str


@dataclass(frozen=True, eq=False)
class PickledStorage:
    """Numbers that lie in a file of their own beside the pickle."""

    kind: str
    """Such as torch.FloatStorage."""
    key: str
    """The file's name."""
    count: int
    """How many numbers."""


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A view of a storage. All in numbers, not bytes; nothing is checked against the storage."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Unpickled:
    """What a pickle holds."""

    value: object = None
    """None, bool, int, float, str, bytes, list, tuple, dict with str keys, or the classes above.
    Items of a dict under other keys are dropped."""
    foreign: set[str] = field(default_factory=set)
    """Names of all classes and functions that are not part of tensors."""


_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_KNOWN = {*_TENSORS, *_PARAMETERS, "collections.OrderedDict", "torch.Size"}

# Instructions whose argument is the value itself.
_VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    ]
)


def read_pickle(data: bytes) -> Unpickled:
    """The value a pickle describes.

    Raises:
        ValueError: the pickle is cut off or makes no sense.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            machine.run(instruction.name, argument)
    # What a senseless program runs into: an empty stack, an unknown memo entry, a wrong type.
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its pickle makes no sense ({error!r})") from error
    return machine.result


class _Machine:
    """A stack, a memo and marks in the stack; see `pickletools` for what each instruction means."""

    def __init__(self) -> None:
        self.result = Unpickled()
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[object, object] = {}

    def run(self, instruction: str, argument: object) -> None:
        push, pop, pop_to_mark = self._stack.append, self._stack.pop, self._pop_to_mark
        match instruction:
            case _ if instruction in _VALUES:
                push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self._memo[argument])
            case "MARK":
                self._marks.append(len(self._stack))
            case "GLOBAL":
                push(self._name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name = pop()
                push(self._name(pop(), name))
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(instruction[-1]))]
                push(tuple(reversed(items)))
            case "TUPLE":
                push(tuple(pop_to_mark()))
            case "BINPERSID":
                push(_storage(pop()))
            case "REDUCE" | "NEWOBJ":
                args = pop()
                push(_call(pop(), args))
            case "NEWOBJ_EX":
                _, args = pop(), pop()
                push(_call(pop(), args))
            case "OBJ":
                callee, *items = pop_to_mark()
                push(_call(callee, tuple(items)))
            case "INST":
                args = tuple(pop_to_mark())
                push(_call(self._name(*str(argument).split(" ", 1)), args))
            case "BUILD":
                # The state of an object, also the `_metadata` of a state dict: of no use here.
                pop()
            case "EMPTY_LIST":
                push([])
            case "LIST":
                push(pop_to_mark())
            case "APPEND":
                self._append([pop()])
            case "APPENDS":
                self._append(pop_to_mark())
            case "EMPTY_DICT":
                push({})
            case "DICT":
                filled: dict[str, object] = {}
                _fill(filled, pop_to_mark())
                push(filled)
            case "SETITEM":
                value = pop()
                self._set([pop(), value])
            case "SETITEMS":
                self._set(pop_to_mark())
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(instruction == "NEWTRUE")
            case "DUP":
                push(self._stack[-1])
            case "POP" if self._marks and self._marks[-1] == len(self._stack):
                self._marks.pop()
            case "POP":
                pop()
            case "POP_MARK" | "ADDITEMS":
                pop_to_mark()
            case "FROZENSET":
                pop_to_mark()
                push(Inert("a set"))
            case "EMPTY_SET" | "PERSID" | "EXT1" | "EXT2" | "EXT4" | "BYTEARRAY8" | "NEXT_BUFFER":
                push(Inert(instruction))
            case "STOP":
                self.result.value = pop()
            case _:
                # PROTO, FRAME and READONLY_BUFFER change nothing.
                pass

    def _pop_to_mark(self) -> list[object]:
        at = self._marks.pop()
        taken = self._stack[at:]
        del self._stack[at:]
        return taken

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def _set(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            _fill(target, items)

    def _name(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle names a class by something else than text")
        full = f"{module}.{name}"
        if full not in _KNOWN and not _is_storage(full):
            self.result.foreign.add(full)
        return Global(full)


def _call(callee: object, args: object) -> object:
    """Answers the few functions that rebuild tensors; of every other call the name remains."""
    name = callee.name if isinstance(callee, Global) else "an object"
    if not isinstance(args, tuple):
        raise ValueError(f"its pickle gives {name} no arguments")
    if name in _TENSORS:
        return _tensor(args)
    if name in _PARAMETERS or name == "torch.Size":
        return args[0]
    if name == "collections.OrderedDict":
        filled: dict[str, object] = {}
        for pair in args[0] if args and isinstance(args[0], list) else ():
            _fill(filled, list(pair))
        return filled
    return Inert(name)


def _storage(identifier: object) -> PickledStorage | Inert:
    match identifier:
        case ("storage", Global(name=kind), str(key), _, int(count)) if _is_storage(kind):
            return PickledStorage(kind, key, count)
    return Inert("a persistent object")


def _is_storage(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return module in ("torch", "torch.storage") and kind.endswith("Storage")


def _fill(target: dict[str, object], items: list[object]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only text is hashed; the hash of a nested tuple would descend without bound.
        if isinstance(key, str):
            target[key] = value


def _numbers(value: object) -> tuple[int, ...]:
    """A shape or stride; sixteen dimensions of 63 bits are more than torch itself knows."""
    if not isinstance(value, tuple) or len(value) > 16:
        raise ValueError("the shape or stride of a tensor is no tuple of numbers")
    if not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError("the shape or stride of a tensor is no tuple of numbers")
    return value


def _tensor(args: tuple[object, ...]) -> PickledTensor | Inert:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, PickledStorage):
        return Inert("a tensor without a storage")
    (first,) = _numbers((offset,))
    tensor = PickledTensor(storage, first, _numbers(shape), _numbers(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError(f"a tensor has shape {tensor.shape} and stride {tensor.stride}")
    return tensor
