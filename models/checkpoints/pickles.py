"""Reads the pickle inside a torch checkpoint without executing anything.

A pickle is a program for a stack machine, and two of its instructions call whatever the file names.
Here the machine is ours and has no call: the few functions that rebuild tensors are answered with
records of where the tensor lies, and every other class or function becomes an `Inert` object that
knows its name. Nothing is imported, and no attribute of anything is looked up or set. The standard
unpickler with its names restricted would not do: a file of a hundred bytes makes it allocate
gigabytes for its memo, and it hashes and calls what the file built.

A short program can also ask for much: to copy a long list or a long name again and again. Every
instruction, and every item that one handles beyond what it takes off the stack, is a step, and the
steps are counted; names and numbers have a longest length. So time and memory are bounded by the
pickle's size and MAX_STEPS.
"""

from __future__ import annotations

import pickletools

from models.checkpoints.pickled import Global, Inert, PickledStorage, PickledTensor, Unpickled

__all__ = ["MAX_STEPS", "read_pickle"]

MAX_STEPS = 2_000_000
"""A released diffusion file with its optimizer's state has 80 000 instructions."""
_MAX_NAME = 1000
"""Characters of a class or function with its module."""
_MAX_MEMO = 2**32
"""Above any memo number of the binary instructions. Those in decimal could be chosen so that all
have one hash, and a dictionary of them would take quadratic time."""


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
        ValueError: the pickle is cut off, makes no sense, or takes more than MAX_STEPS.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            machine.spend(1)
            machine.run(instruction.name, argument)
    # What a senseless program runs into: an empty stack, an unknown memo entry, a wrong type. The
    # library's own errors may quote the whole pickle.
    except (IndexError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, _Refused) else f"makes no sense ({error!r:.200})"
        raise ValueError(f"its pickle {reason}") from error
    return machine.result


class _Refused(ValueError):
    """The message goes on from "its pickle"."""


class _Machine:
    """A stack, a memo and marks in the stack; see `pickletools` for what each instruction means."""

    def __init__(self) -> None:
        self.result = Unpickled()
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[object, object] = {}
        self._globals: dict[str, Global] = {}
        self._inert: dict[str, Inert] = {}
        self._steps = 0

    def spend(self, steps: int) -> None:
        """Counts steps."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _Refused(f"takes more than {MAX_STEPS} steps, and those of StableSR some 80000")

    def run(self, instruction: str, argument: object) -> None:
        push, pop, pop_to_mark = self._stack.append, self._stack.pop, self._pop_to_mark
        match instruction:
            case _ if instruction in _VALUES:
                push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                if not isinstance(argument, int) or not 0 <= argument < _MAX_MEMO:
                    raise _Refused("has a memo number that no program writes")
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
                push(_storage(pop()) or self._named("a persistent object"))
            case "REDUCE" | "NEWOBJ":
                args = pop()
                push(self._call(pop(), args))
            case "NEWOBJ_EX":
                _, args = pop(), pop()
                push(self._call(pop(), args))
            case "OBJ":
                callee, *items = pop_to_mark()
                push(self._call(callee, tuple(items)))
            case "INST":
                args = tuple(pop_to_mark())
                push(self._call(self._name(*str(argument).split(" ", 1)), args))
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
                push(self._named("a set"))
            case "EMPTY_SET" | "PERSID" | "EXT1" | "EXT2" | "EXT4" | "BYTEARRAY8" | "NEXT_BUFFER":
                push(self._named(instruction))
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
            raise _Refused("names a class by something else than text")
        # Before the two are joined: a long text costs the file's bytes once, copies would not.
        if len(module) + len(name) > _MAX_NAME:
            raise _Refused(f"names a class of {len(module) + len(name)} characters")
        full = f"{module}.{name}"
        if full not in _KNOWN and not _is_storage(full):
            self.result.foreign.add(full)
        return self._globals.setdefault(full, Global(full))

    def _named(self, name: str) -> Inert:
        return self._inert.setdefault(name, Inert(name))

    def _call(self, callee: object, args: object) -> object:
        """Answers the few functions that rebuild tensors; of every other call the name remains."""
        name = callee.name if isinstance(callee, Global) else "an object"
        if not isinstance(args, tuple):
            raise _Refused(f"gives {name} no arguments")
        if name in _TENSORS:
            return _tensor(args) or self._named("a tensor without a storage")
        if name in _PARAMETERS or name == "torch.Size":
            return args[0]
        if name == "collections.OrderedDict":
            return self._ordered(args[0] if args else ())
        return self._named(name)

    def _ordered(self, pairs: object) -> dict[str, object]:
        filled: dict[str, object] = {}
        if isinstance(pairs, list):
            # The list may be the argument of any number of calls.
            self.spend(len(pairs))
            for pair in pairs:
                if isinstance(pair, list | tuple) and len(pair) == 2:
                    _fill(filled, [*pair])
        return filled


def _storage(identifier: object) -> PickledStorage | None:
    match identifier:
        case ("storage", Global(name=kind), str(key), _, int(count)) if _is_storage(kind):
            return PickledStorage(kind, key, *_numbers((count,)))
    return None


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
        raise _Refused("has a tensor whose shape or stride is no tuple of numbers")
    if not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise _Refused("has a tensor whose shape, stride, offset or count is no number")
    return value


def _tensor(args: tuple[object, ...]) -> PickledTensor | None:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, PickledStorage):
        return None
    (first,) = _numbers((offset,))
    tensor = PickledTensor(storage, first, _numbers(shape), _numbers(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise _Refused(f"has a tensor of shape {tensor.shape} and stride {tensor.stride}")
    return tensor
