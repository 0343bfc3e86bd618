"""Values of a declared type: how they are packed for the lower tiers, and opened again."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Flag
from typing import Any, Final, get_args, get_origin
from uuid import UUID

import msgspec
from msgspec import inspect, msgpack

from acgsperf._native.entry import Codec, Packed, TypedEntry, UnstorableValueError
from acgsperf.dispatch import changed_type
from acgsperf.tiers.base import Entry, Tier

__all__ = ["UNCHECKED", "UNOPENED", "ValueType", "codec_of", "open_all", "opened"]

# What MessagePack gives back without a declared type.
_PLAIN: Final = (
    inspect.AnyType,
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.LiteralType,
    inspect.ListType,
    inspect.DictType,
    inspect.TypedDictType,
    inspect.UnionType,
    inspect.ExtType,
)
_ATOMS: Final = (inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType, inspect.BytesType)
# The classes of the values of the types that do not name theirs.
_CLASSES: Final[dict[type, frozenset[type]]] = {
    kind: frozenset(classes)
    for kind, classes in (
        (inspect.NoneType, (type(None),)),
        (inspect.BoolType, (bool,)),
        (inspect.IntType, (int,)),
        # An int is a float to type checkers.
        (inspect.FloatType, (float, int)),
        (inspect.StrType, (str,)),
        (inspect.BytesType, (bytes,)),
        (inspect.ByteArrayType, (bytearray,)),
        (inspect.MemoryViewType, (memoryview,)),
        (inspect.DateTimeType, (datetime,)),
        (inspect.TimeType, (time,)),
        (inspect.DateType, (date,)),
        (inspect.TimeDeltaType, (timedelta,)),
        (inspect.UUIDType, (UUID,)),
        (inspect.DecimalType, (Decimal,)),
        (inspect.ListType, (list,)),
        (inspect.SetType, (set,)),
        (inspect.FrozenSetType, (frozenset,)),
        (inspect.VarTupleType, (tuple,)),
        (inspect.TupleType, (tuple,)),
        (inspect.DictType, (dict,)),
        (inspect.TypedDictType, (dict,)),
        (inspect.ExtType, (msgpack.Ext,)),
        (inspect.RawType, (msgspec.Raw,)),
    )
}


class ValueType:
    """A declared type. It packs its values as MessagePack, by msgspec, and gives them back with the same type.

    Args:
        given: what msgspec can decode (Struct, dataclass, TypedDict, attrs, NamedTuple, date and time, Decimal,
            UUID, Enum, collections, NewType, generics, unions), or a Pydantic model, alone or in one of these.

    Attributes:
        declared: the type.

    Raises:
        TypeError: if it is not such a type.
    """

    __slots__ = ("_classes", "_decode", "_holder", "_is_plain", "_is_verified", "_unchecked", "declared")

    def __init__(self, given: Any) -> None:
        declared = given
        try:
            found = _Types(declared)
            declared = _with_any(declared)
            decoder = msgpack.Decoder(declared, dec_hook=_from_builtins)
            # `convert` remembers what it knows of a Struct, but not of a type such as `list[int]`.
            self._holder: Final[Any] = msgspec.defstruct("Holder", [("value", declared)], array_like=True, gc=False)
        except (TypeError, NameError, AttributeError, RecursionError) as error:
            known = "a type that msgspec can decode or a Pydantic model"
            raise TypeError(f"value_type must be {known}, got {name_of(declared)} ({error})") from None
        self.declared: Final = given
        self._decode: Final = decoder.decode
        self._classes: Final = found.classes
        self._is_plain: Final = found.is_plain
        self._is_verified: Final = found.loses_keys or (found.is_open and not found.is_plain)
        self._unchecked: Final = found.unchecked

    def __repr__(self) -> str:
        return f"ValueType({name_of(self.declared)})"

    def pack(self, value: Any, /) -> tuple[bytes, bool]:
        """See `Codec.pack`."""
        if self._classes is not None and type(value) not in self._classes:
            raise UnstorableValueError(type(value), f"is not of the declared type, {name_of(self.declared)}")
        payload = _encode(value)
        if self._is_plain and (changed := changed_type(value)) is not None:
            raise self._refusal(changed, "would change in a value")
        if type(value) not in self._unchecked:
            # Without this, a value that does not fit its type would be a miss for every reader.
            try:
                read = self._decode(payload)
            except (TypeError, ValueError) as error:
                raise self._refusal(type(value), f"could not be read ({error}) as a value") from None
            if self._is_verified and not _is_same(value, read):
                raise self._refusal(type(value), "would change in a value")
        return payload, not self._is_plain

    def _refusal(self, kind: type, why: str) -> UnstorableValueError:
        return UnstorableValueError(kind, f"{why} of type {name_of(self.declared)}")

    def opened(self, value: Any, /) -> Any:
        """See `Codec.opened`."""
        if type(value) is Packed:
            return self._decode(value.data)
        if type(value) in self._unchecked:
            return value
        return msgspec.convert((value,), self._holder, dec_hook=_from_builtins).value

    def clone(self, value: Any) -> Any:
        """Return a copy of a value, as a tier would return it.

        Raises:
            Exception: if a tier could not keep it.
        """
        payload, _ = self.pack(value)
        return self._decode(payload)


def name_of(declared: Any) -> str:
    """Return a type for messages."""
    return (
        declared.__qualname__ if isinstance(declared, type) and get_origin(declared) is None else f"{declared!r:.200}"
    )


class _Unchecked:
    """Packs values whose user restores their types itself."""

    __slots__ = ()

    def pack(self, value: Any, /) -> tuple[bytes, bool]:
        """See `Codec.pack`."""
        return _encode(value), False

    def opened(self, value: Any, /) -> Any:
        """See `Codec.opened`."""
        return value


UNCHECKED: Final[Codec] = _Unchecked()


class _Unopened:
    """Keeps values as a tier has returned them, for a caller that is not known yet."""

    __slots__ = ()

    def pack(self, value: Any, /) -> tuple[bytes, bool]:
        """See `Codec.pack`."""
        return (value.data, True) if type(value) is Packed else (_encode(value), False)

    def opened(self, value: Any, /) -> Any:
        """See `Codec.opened`."""
        return value


UNOPENED: Final[Codec] = _Unopened()


def opened(entry: Entry, codec: Codec | None, tier: Tier | None) -> Entry | None:
    """Return an entry that a tier has returned, with its value; None if the caller's codec cannot open it.

    Args:
        entry: the entry.
        codec: the codec of the caller.
        tier: counts a value that cannot be opened; None to count none.
    """
    if codec is UNOPENED and type(entry.value) is not Packed:
        return entry
    if codec is None and type(entry.value) is not Packed:
        return entry
    if entry.negative or (codec is not None and entry.codec is codec):
        return entry
    if codec is None:
        # Only a caller that declares the type can open it.
        return None
    try:
        value = codec.opened(entry.value)
    except MemoryError:
        raise
    except Exception:
        # Its class has changed, or another user of the key has another type.
        if tier is not None:
            tier.count_corrupt()
        return None
    # By position: `replace` takes several times as long.
    return TypedEntry(
        *(value, entry.created_at, entry.fresh_until, entry.kept_until, entry.tags, entry.negative, entry.id),
        *(entry.stamp, codec),
    )


def open_all(entries: dict[str, Entry], codec: Codec | None, tier: Tier) -> list[str]:
    """Open entries that a tier has returned, in place. Remove those that cannot be opened, and return their keys."""
    unopened = []
    for key, entry in entries.items():
        if codec is not None or type(entry.value) is Packed:
            found = opened(entry, codec, tier)
            if found is None:
                unopened.append(key)
            else:
                entries[key] = found
    for key in unopened:
        del entries[key]
    return unopened


def codec_of(declared: Any) -> ValueType | None:
    """Return the codec for a declared type; None for `Any` and `object`, which say nothing about a value."""
    return None if declared is Any or declared is object else ValueType(declared)


class _Types:
    """What follows from a declared type.

    Attributes:
        classes: those of which a value must be an instance, without subclasses; None for any.
        is_plain: whether MessagePack alone gives back its values.
        unchecked: the classes whose JSON-like values need no further check.
        is_open: whether a value of it may change nevertheless, because a part of it does not say enough.
        loses_keys: whether a value may have keys that are not declared.

    Raises:
        TypeError: if a part of it has no codec.
    """

    def __init__(self, declared: Any) -> None:
        self.is_plain = True
        self.is_open = False
        self.loses_keys = False
        self._seen: set[int] = set()
        root = inspect.type_info(declared)
        self._visit(root)
        self.classes = _classes_of(root)
        self.unchecked = self.classes if self.classes is not None and _is_shallow(root) else frozenset[type]()

    def _visit(self, part: inspect.Type) -> None:
        if id(part) in self._seen:
            return
        self._seen.add(id(part))
        kind = type(part)
        if isinstance(part, inspect.Metadata):
            self._visit(part.type)
            return
        if isinstance(part, inspect.CustomType):
            if part.cls is not object and not _is_pydantic(part.cls):
                raise TypeError(f"{part.cls.__qualname__} is not supported")
            # A model may have fields of subclasses, which Pydantic dumps as their declared class.
            self.is_open = True
            self.is_plain = self.is_plain and part.cls is object
            return
        self.is_open = self.is_open or kind is inspect.AnyType or _is_flag(part)
        self.loses_keys = self.loses_keys or kind is inspect.TypedDictType
        self.is_plain = self.is_plain and kind in _PLAIN
        for inner in _parts_of(part):
            self._visit(inner)


def _is_shallow(root: inspect.Type) -> bool:
    """Return whether a type has no constraints, and says nothing about items."""
    if isinstance(root, inspect.ListType | inspect.DictType):
        key = root.key_type if isinstance(root, inspect.DictType) else inspect.StrType()
        item = root.value_type if isinstance(root, inspect.DictType) else root.item_type
        is_any = isinstance(item, inspect.AnyType) or getattr(item, "cls", None) is object
        return is_any and key in (inspect.StrType(), inspect.AnyType())
    return type(root) in _ATOMS and root == type(root)()


def _parts_of(part: inspect.Type) -> Iterable[inspect.Type]:
    """Return the types that a type contains."""
    if isinstance(part, inspect.UnionType):
        return part.types
    if isinstance(part, inspect.TupleType):
        return part.item_types
    if isinstance(part, inspect.DictType):
        return part.key_type, part.value_type
    if isinstance(part, inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType):
        return (part.item_type,)
    return [field.type for field in getattr(part, "fields", ())]


def _is_flag(part: inspect.Type) -> bool:
    return isinstance(part, inspect.EnumType) and issubclass(part.cls, Flag)


def _classes_of(part: inspect.Type) -> frozenset[type] | None:
    """Return the classes of the values of a type; None if any class is possible."""
    if isinstance(part, inspect.Metadata):
        return _classes_of(part.type)
    if isinstance(part, inspect.UnionType):
        each = list(map(_classes_of, part.types))
        return None if None in each else frozenset().union(*(one for one in each if one is not None))
    if isinstance(part, inspect.LiteralType):
        return frozenset(map(type, part.values))
    if isinstance(part, inspect.CustomType) and part.cls is object:
        return None
    if type(part) in _CLASSES:
        return _CLASSES[type(part)]
    own = getattr(part, "cls", None)
    return None if own is None else frozenset((get_origin(own) or own,))


def _is_pydantic(kind: type) -> bool:
    return hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _with_any(declared: Any) -> Any:
    """Return a type with `Any` in the place of `object`, for which msgspec would call a function for each value."""
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is object:
        return Any
    if origin in (list, dict, tuple, set, frozenset) and arguments:
        return origin[tuple(map(_with_any, arguments))]
    return declared


def _to_builtins(value: Any) -> Any:
    """Return what msgspec can encode, for a value that it cannot encode itself."""
    if _is_pydantic(type(value)):
        # Without what the model computes.
        return value.model_dump(round_trip=True)
    if hasattr(type(value), "unicode_string"):
        # A URL of Pydantic.
        return str(value)
    # The encoder expects this for a type that the hook does not know.
    raise NotImplementedError


def _from_builtins(kind: Any, value: Any) -> Any:
    """Return a value of a type that msgspec does not know: a Pydantic model, or `object`."""
    return value if isinstance(value, kind) else kind.model_validate(value, by_alias=False, by_name=True)


_encode: Final = msgpack.Encoder(enc_hook=_to_builtins).encode


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, and of the same types throughout."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(_is_same(a, c) and _is_same(b, d) for (a, b), (c, d) in pairs)
    if kind is list or kind is tuple:
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, msgspec.Struct):
        names: Iterable[str] = kind.__struct_fields__
    elif is_dataclass(one):
        names = [field.name for field in fields(one)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    else:
        # The second comparison is for NaN.
        return bool(one == other) or bool(one != one and other != other)
    return all(_is_same(getattr(one, name), getattr(other, name)) for name in names)
