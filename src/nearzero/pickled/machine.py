"""A machine for the opcodes of a pickle that calls nothing: a name stays a name, and what it would make becomes a stub.

Python's own unpickler looks names up and calls what it finds. This one has no way to look a name up. It knows names
only as text; where a table of ours has an entry for the text, that function of ours makes the value, from arguments
that it checks. `pickletools` decodes the opcodes, into numbers, text and bytes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_OPCODES = 5_000_000
MAX_MARKS = 10_000
Table = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, as text: nothing is imported."""

    text: str


@dataclass(eq=False, repr=False, slots=True)
class Stub:
    """What a pickle would have made by a class or function that is not read: inert.

    `name` is that of the class or function, `args` what it would have been called with, `state` what would have become
    its attributes, `items` and `pairs` what would have been appended and set.

    >>> Stub("os.system", ("ls",)).name
    'os.system'
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Stub({self.name!r:.200})"  # without what it holds, which may hold it in turn


@dataclass
class Budget:
    """What a file may still cost, over all pickles in it, and the names that were met: `take` counts bytes down."""

    bytes: int
    opcodes: int = MAX_OPCODES
    names: set[str] = field(default_factory=set)

    def take(self, size: int) -> None:
        """Raises ValueError where the file makes more than it may."""
        self.bytes -= size
        if self.bytes < 0:
            raise ValueError("it unpacks to many times its size")


class Machine:
    """One pickle: a stack, its marks and a memo. `table` says which names are read.

    `persistent` answers a persistent id, `build` gives a value of ours, not a stub, its state.
    """

    def __init__(
        self, table: Table, build: Callable[[Any, Any], None], persistent: Callable[[Any], Any], budget: Budget
    ) -> None:
        self.table, self.give, self.persistent, self.budget = table, build, persistent, budget
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        """The value of the pickle that begins where `file` stands, which then stands behind it.

        Raises ValueError, TypeError, IndexError or KeyError for a pickle that is damaged or not read.
        """
        for opcode, argument, _ in pickletools.genops(file):
            self.budget.opcodes -= 1
            if self.budget.opcodes < 0:
                raise ValueError(f"it has more than {MAX_OPCODES:,} opcodes")
            if opcode.name in PLAIN:
                self.stack.append(argument)
            elif opcode.name in ACTIONS:
                ACTIONS[opcode.name](self, argument)
            elif opcode.name not in SKIPPED:
                raise ValueError(f"its opcode {opcode.name} is not read")
        return self.stack.pop()

    # ---- the stack

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Begins a new stack above this one."""
        if len(self.marked) >= MAX_MARKS:
            raise ValueError(f"it nests more than {MAX_MARKS:,} marks")
        self.marked.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """What was put on the stack since the last mark, which is taken away."""
        found, self.stack = self.stack, self.marked.pop()
        return found

    def pop(self) -> Any:
        """Takes the top away; on an empty stack, the mark below it."""
        return self.stack.pop() if self.stack else self.items()

    # ---- names, calls, states

    def name(self, module: object, name: object) -> None:
        """A name is pushed as text."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name is no text")
        text = f"{module}.{name}"
        self.budget.names.add(text)
        self.stack.append(Name(text))

    def call(self, what: Any, arguments: Any, state: dict[Any, Any] | None = None) -> None:
        """Pushes what our table makes of a name and its arguments, or a stub."""
        if not isinstance(arguments, tuple):
            raise TypeError("a call's arguments are no tuple")
        if isinstance(what, Name) and what.text in self.table and state is None:
            self.stack.append(self.table[what.text](*arguments))
            self.budget.take(weight(self.stack[-1]))
        elif isinstance(what, (Name, Stub)):
            text = what.text if isinstance(what, Name) else f"{what.name}()"[:1000]
            self.stack.append(Stub(text, arguments, state))
        else:
            raise TypeError(f"it calls a value, {type(what).__name__}")

    def call_with_keywords(self) -> None:
        """NEWOBJ_EX: the keywords are kept as the stub's state."""
        keywords, arguments = self.stack.pop(), self.stack.pop()
        self.call(self.stack.pop(), arguments, keywords or None)

    def call_top(self) -> None:
        """REDUCE and NEWOBJ: the top is a tuple of arguments, below it what is called."""
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def call_marked(self) -> None:
        """OBJ: since the mark lie a class and its arguments."""
        what, *arguments = self.items()
        self.call(what, tuple(arguments))

    def call_named(self, text: str) -> None:
        """INST: the name is the opcode's, the arguments lie since the mark."""
        arguments = tuple(self.items())
        self.name(*text.split(" ", 1))
        self.call(self.stack.pop(), arguments)

    def build(self) -> None:
        """BUILD: the top is the state of the value below it."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state
        else:
            self.give(self.stack[-1], state)
            self.budget.take(weight(self.stack[-1]))

    # ---- containers

    def append(self, values: list[Any]) -> None:
        """Appends to the list on the top."""
        target = self.stack[-1]
        if not isinstance(target, (list, Stub)):
            raise TypeError(f"it appends to {type(target).__name__}")
        (target.items if isinstance(target, Stub) else target).extend(values)

    def add(self, values: list[Any]) -> None:
        """Adds to the set on the top."""
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(key, values))
        else:
            self.append(values)

    def set(self, values: list[Any]) -> None:
        """Sets key, value, key, value ... in the dict on the top."""
        target = self.stack[-1]
        if not isinstance(target, (dict, Stub)) or len(values) % 2:
            raise TypeError(f"it sets items of {type(target).__name__}")
        (target.pairs if isinstance(target, Stub) else target).update(pairs(values))

    def put(self, number: int) -> None:
        """Remembers the top."""
        self.memo[number] = self.stack[-1]


def weight(value: Any) -> int:
    """About how many bytes a value takes that our table made; a tensor lies in a storage that was counted."""
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return 8 * len(value)
    return value.nbytes if isinstance(value, np.ndarray) else 0


def key(value: Any) -> Any:
    """A value that may be a key: plain, or a tuple of plain ones, so that hashing it ends. Raises TypeError."""
    plain = (str, bytes, int, float, complex, type(None), Name, Stub)
    if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(part, plain) for part in value)):
        return value
    raise TypeError(f"a {type(value).__name__} is a key")


def pairs(values: list[Any]) -> dict[Any, Any]:
    """A dict of key, value, key, value ..."""
    if len(values) % 2:
        raise TypeError("a key has no value")
    return {key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}


PLAIN = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes whose argument is the value."""

SKIPPED = {"PROTO", "FRAME", "STOP"}

ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.items(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "LIST": lambda m, _: m.push(m.items()),
    "TUPLE": lambda m, _: m.push(tuple(m.items())),
    "TUPLE1": lambda m, _: m.push((m.stack.pop(),)),
    "TUPLE2": lambda m, _: m.push((m.stack.pop(), m.stack.pop())[::-1]),
    "TUPLE3": lambda m, _: m.push((m.stack.pop(), m.stack.pop(), m.stack.pop())[::-1]),
    "DICT": lambda m, _: m.push(pairs(m.items())),
    "FROZENSET": lambda m, _: m.push(frozenset(map(key, m.items()))),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.items()),
    "ADDITEMS": lambda m, _: m.add(m.items()),
    "SETITEM": lambda m, _: m.set([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set(m.items()),
    "PUT": lambda m, number: m.put(number),
    "BINPUT": lambda m, number: m.put(number),
    "LONG_BINPUT": lambda m, number: m.put(number),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GET": lambda m, number: m.push(m.memo[number]),
    "BINGET": lambda m, number: m.push(m.memo[number]),
    "LONG_BINGET": lambda m, number: m.push(m.memo[number]),
    "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*[m.stack.pop(), m.stack.pop()][::-1]),
    "REDUCE": lambda m, _: m.call_top(),
    "NEWOBJ": lambda m, _: m.call_top(),
    "NEWOBJ_EX": lambda m, _: m.call_with_keywords(),
    "OBJ": lambda m, _: m.call_marked(),
    "INST": lambda m, text: m.call_named(text),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.stack.pop())),
}
