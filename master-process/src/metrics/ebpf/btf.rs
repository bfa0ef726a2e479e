//! Reading the kernel's type information (BTF), as far as needed to find a few fields.
//!
//! `/sys/kernel/btf/vmlinux` holds 150,000 types. The reader builds a table of the offsets of the types, and reads
//! each type where it is; dropping the `Btf` frees everything. The format is described in the kernel's
//! Documentation/bpf/btf.rst.

/// Type information in the byte order of this machine.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// The offset of each type in `types`; the first type has id 1.
    starts: Vec<u32>,
}

/// The id of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeId(u32);

impl TypeId {
    /// The id as the kernel takes it.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// A field of a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// The offset from the start of the outer structure, in bytes.
    pub(super) offset: u32,
    /// The type of the field.
    pub(super) of: TypeId,
}

/// A type with its names and qualifiers (`typedef`, `const`, …) resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// An integer, an enumeration, or a number of another kind.
    Number {
        /// In bytes.
        size: u32,
    },
    /// A pointer to this type.
    Pointer(TypeId),
    /// An array.
    Array {
        /// The type of its elements.
        of: TypeId,
        /// The number of its elements.
        len: u32,
    },
    /// A structure or a union.
    Structure {
        /// In bytes.
        size: u32,
    },
    /// The prototype of a function.
    Prototype,
    /// Any other kind, or an unknown type.
    Other,
}

const MAGIC: u16 = 0xeb9f;
/// The size of the header of a type, in bytes: name, info, and size or type.
const HEAD: usize = 12;
const MEMBER: usize = 12;
/// The maximum depth of nested anonymous structures and of names: far above what kernels have, so that a broken file
/// does not cause an endless loop.
const DEEP: u32 = 32;

// Kinds, as in include/uapi/linux/btf.h.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// The header of a type, and the data that follows it.
#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// The number of its members, values or parameters.
    len: usize,
    /// Whether the offsets of its members also hold the sizes of bit fields.
    has_bit_sizes: bool,
    size_or_type: u32,
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Builds the table of types. `None` if the data is not BTF, or has an unknown kind of type.
    pub(super) fn parse(data: &'a [u8]) -> Option<Btf<'a>> {
        if number16(data, 0)? != MAGIC {
            return None;
        }
        let body = data.get(number(data, 4)? as usize..)?;
        let part = |at: usize| {
            let start = number(data, at)? as usize;
            body.get(start..start.checked_add(number(data, at + 4)? as usize)?)
        };
        let mut btf = Btf { types: part(8)?, strings: part(16)?, starts: Vec::new() };
        let mut start = 0;
        while start < btf.types.len() {
            btf.starts.push(u32::try_from(start).ok()?);
            start += HEAD + btf.at(start)?.len_of_rest()?;
        }
        Some(btf)
    }

    /// The structure of this name.
    pub(super) fn structure(&self, name: &str) -> Option<TypeId> {
        self.find(|of| of.kind == STRUCT && of.len > 0 && self.is_called(of.name, name))
    }

    /// The type that a `typedef` of this name stands for.
    pub(super) fn typedef(&self, name: &str) -> Option<TypeId> {
        self.find(|of| of.kind == TYPEDEF && self.is_called(of.name, name))
    }

    /// The function of this name.
    pub(super) fn function(&self, name: &str) -> Option<TypeId> {
        self.find(|of| of.kind == FUNC && self.is_called(of.name, name))
    }

    /// The enumeration that has a value of this name.
    pub(super) fn enumeration_with(&self, name: &str) -> Option<TypeId> {
        self.find(|of| self.value_of(of, name).is_some())
    }

    /// The value of this name in an enumeration.
    pub(super) fn value(&self, enumeration: TypeId, name: &str) -> Option<u32> {
        self.value_of(&self.get(enumeration)?, name)
    }

    fn value_of(&self, of: &Type<'_>, name: &str) -> Option<u32> {
        if of.kind != ENUM {
            return None;
        }
        let mut values = of.rest.chunks_exact(8);
        let value = values.find(|value| number(value, 0).is_some_and(|at| self.is_called(at, name)))?;
        number(value, 4)
    }

    /// A field of a structure, or of an anonymous structure in it.
    pub(super) fn field(&self, structure: TypeId, name: &str) -> Option<Field> {
        self.field_within(structure, name, DEEP)
    }

    fn field_within(&self, structure: TypeId, name: &str, depth: u32) -> Option<Field> {
        let outer = self.get(self.bare(structure)?)?;
        if depth == 0 || !matches!(outer.kind, STRUCT | UNION) {
            return None;
        }
        outer.rest.chunks_exact(MEMBER).find_map(|member| {
            let (called, of) = (number(member, 0)?, TypeId(number(member, 4)?));
            let bits = number(member, 8)?;
            let offset = if outer.has_bit_sizes { bits & 0x00ff_ffff } else { bits } / 8;
            if called == 0 {
                let inner = self.field_within(of, name, depth - 1)?;
                return Some(Field { offset: offset.checked_add(inner.offset)?, of: inner.of });
            }
            self.is_called(called, name).then_some(Field { offset, of })
        })
    }

    /// The shape of a type.
    pub(super) fn shape(&self, id: TypeId) -> Shape {
        let Some(of) = self.bare(id).and_then(|bare| self.get(bare)) else { return Shape::Other };
        match of.kind {
            INT | ENUM | ENUM64 | FLOAT => Shape::Number { size: of.size_or_type },
            PTR => Shape::Pointer(TypeId(of.size_or_type)),
            STRUCT | UNION => Shape::Structure { size: of.size_or_type },
            ARRAY => match (number(of.rest, 0), number(of.rest, 8)) {
                (Some(element), Some(len)) => Shape::Array { of: TypeId(element), len },
                _ => Shape::Other,
            },
            FUNC_PROTO => Shape::Prototype,
            _ => Shape::Other,
        }
    }

    /// The size of a value of this type, in bytes; `None` if the type has no size of its own.
    pub(super) fn size(&self, id: TypeId) -> Option<u32> {
        match self.shape(id) {
            Shape::Number { size } | Shape::Structure { size } => Some(size),
            Shape::Pointer(_) => Some(8),
            Shape::Array { .. } | Shape::Prototype | Shape::Other => None,
        }
    }

    /// The type of a parameter of a function; the first parameter is 0.
    pub(super) fn parameter(&self, prototype: TypeId, index: usize) -> Option<TypeId> {
        let of = self.get(self.bare(prototype)?).filter(|of| of.kind == FUNC_PROTO)?;
        of.rest.chunks_exact(8).nth(index).and_then(|parameter| number(parameter, 4)).map(TypeId)
    }

    /// Resolves names and qualifiers.
    fn bare(&self, id: TypeId) -> Option<TypeId> {
        let mut id = id;
        for _ in 0..DEEP {
            let of = self.get(id)?;
            if !matches!(of.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some(id);
            }
            id = TypeId(of.size_or_type);
        }
        None
    }

    fn find(&self, wanted: impl Fn(&Type<'_>) -> bool) -> Option<TypeId> {
        let count = u32::try_from(self.starts.len()).ok()?;
        (1..=count).map(TypeId).find(|id| self.get(*id).is_some_and(|of| wanted(&of)))
    }

    fn get(&self, id: TypeId) -> Option<Type<'a>> {
        let index = id.0.checked_sub(1)?;
        self.at(*self.starts.get(index as usize)? as usize)
    }

    fn at(&self, start: usize) -> Option<Type<'a>> {
        let bytes = self.types.get(start..)?;
        let info = number(bytes, 4)?;
        let mut of = Type {
            name: number(bytes, 0)?,
            kind: (info >> 24) & 0x1f,
            len: (info & 0xffff) as usize,
            has_bit_sizes: info >> 31 != 0,
            size_or_type: number(bytes, 8)?,
            rest: bytes.get(HEAD..)?,
        };
        of.rest = of.rest.get(..of.len_of_rest()?)?;
        Some(of)
    }

    fn is_called(&self, name: u32, wanted: &str) -> bool {
        let Some(rest) = self.strings.get(name as usize..) else { return false };
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl Type<'_> {
    /// The number of bytes after the header; `None` for an unknown kind.
    fn len_of_rest(&self) -> Option<usize> {
        Some(match self.kind {
            PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => self.len * 12,
            ENUM | FUNC_PROTO => self.len * 8,
            _ => return None,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
