//! The interpreter of a program: the first line of a script names it, or the program headers of an ELF file; execve(2),
//! elf(5).
//!
//! `execve` fails with the same errno if the interpreter is missing as if the program is. This code runs in the child
//! of a start, so it must not allocate or panic.

use std::ops::Range;

/// The number of bytes that the kernel reads to recognize a format: `BINPRM_BUF_SIZE`.
pub(super) const HEAD: usize = 256;

/// The number of program headers that are searched. By the rules of the format, the interpreter is among the first.
pub(super) const MAX_HEADERS: usize = 16;

/// The size of the largest program header, `Elf64_Phdr`.
pub(super) const HEADER: usize = 56;

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A script. The range of bytes is the path of the interpreter.
    Script(usize, usize),
    /// An ELF file with these program headers.
    Elf(Headers),
    /// Another format.
    Other,
}

/// The location of an ELF file's program headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) offset: u64,
    entry: usize,
    count: usize,
    /// 64-bit format; otherwise 32-bit.
    wide: bool,
}

impl Headers {
    /// The size in bytes of the headers that are searched.
    pub(super) fn size(self) -> usize {
        self.entry * self.count.min(MAX_HEADERS)
    }

    /// Offset and length of the interpreter's path in the file, from the bytes of the headers.
    pub(super) fn interpreter(self, headers: &[u8]) -> Option<(u64, usize)> {
        const PT_INTERP: u64 = 3;
        let of = |header: &[u8]| {
            let (offset, size) = if self.wide { (8..16, 32..40) } else { (4..8, 16..20) };
            (number(header, 0..4)? == PT_INTERP)
                .then(|| Some((number(header, offset)?, number(header, size)?)))
                .flatten()
        };
        let (offset, size) = headers.chunks_exact(self.entry).find_map(of)?;
        Some((offset, usize::try_from(size).ok()?))
    }
}

/// Recognizes a format by the first bytes of a file.
pub(super) fn kind(head: &[u8]) -> Kind {
    if head.starts_with(b"#!") {
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let skipped = head.iter().skip(2).take_while(|byte| is_blank(byte)).count();
        let start = 2 + skipped;
        let ends = |byte: &u8| is_blank(byte) || matches!(byte, b'\n' | 0);
        let length = head.iter().skip(start).take_while(|byte| !ends(byte)).count();
        return if length > 0 { Kind::Script(start, start + length) } else { Kind::Other };
    }
    headers(head).map_or(Kind::Other, Kind::Elf)
}

fn headers(head: &[u8]) -> Option<Headers> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let wide = match head.get(4)? {
        1 => false,
        2 => true,
        _unknown => return None,
    };
    let little_endian = *head.get(5)? == 1;
    let (offset, entry, count) = if wide { (32..40, 54..56, 56..58) } else { (28..32, 42..44, 44..46) };
    let entry = usize::try_from(number(head, entry)?).ok()?;
    let fits = entry == if wide { HEADER } else { 32 };
    (little_endian && fits).then_some(())?;
    let count = usize::try_from(number(head, count)?).ok()?;
    Some(Headers { offset: number(head, offset)?, entry, count, wide })
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: Range<usize>) -> Option<u64> {
    let digits = bytes.get(at)?.iter().rev();
    Some(digits.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Whether a shell could run this as a script: a zero byte in the first line means that the file is not text.
pub(super) fn is_text(head: &[u8]) -> bool {
    head.iter().take_while(|byte| **byte != b'\n').all(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_script(head: &[u8]) -> Option<&[u8]> {
        match kind(head) {
            Kind::Script(start, end) => head.get(start..end),
            Kind::Elf(_) | Kind::Other => None,
        }
    }

    #[test]
    fn a_script_names_its_interpreter_up_to_a_blank() {
        assert_eq!(of_script(b"#!/bin/sh\necho"), Some(b"/bin/sh".as_slice()));
        assert_eq!(of_script(b"#! \t/usr/bin/env node\n"), Some(b"/usr/bin/env".as_slice()));
        assert_eq!(
            of_script(b"#!/bin/sh\r\necho"),
            Some(b"/bin/sh\r".as_slice()),
            "not a blank for the kernel"
        );
        assert_eq!(of_script(b"#!/bin/sh"), Some(b"/bin/sh".as_slice()), "a file of one line");
        for none in [b"#!\n".as_slice(), b"#! \n", b"#!", b"# /bin/sh", b"", b"#"] {
            assert_eq!(of_script(none), None, "{none:?}");
        }
    }

    #[test]
    fn an_elf_file_names_its_loader() {
        let file = std::fs::read("/bin/ls").expect("every host has it");
        let Kind::Elf(headers) = kind(&file[..HEAD]) else { unreachable!("an ELF file") };
        let start = usize::try_from(headers.offset).expect("a short file");
        let (at, size) = headers.interpreter(&file[start..start + headers.size()]).expect("it is dynamic");
        let at = usize::try_from(at).expect("a short file");
        let name = file[at..at + size].strip_suffix(b"\0").expect("a C string");
        assert!(std::path::Path::new(std::str::from_utf8(name).expect("ASCII")).exists(), "{name:?}");
    }

    #[test]
    fn an_elf_file_of_32_bits_names_its_loader() {
        let mut head = [0u8; HEAD];
        head[..6].copy_from_slice(b"\x7fELF\x01\x01");
        (head[28], head[42], head[44]) = (52, 32, 2);
        let Kind::Elf(headers) = kind(&head) else { unreachable!("an ELF file") };
        assert_eq!((headers.offset, headers.size()), (52, 64));
        let mut table = [0u8; 64];
        (table[0], table[32], table[32 + 5], table[32 + 16]) = (1, 3, 2, 19);
        assert_eq!(headers.interpreter(&table), Some((512, 19)));
        assert_eq!(headers.interpreter(&table[..32]), None, "it is not among those that were read");
    }

    #[test]
    fn arbitrary_bytes_do_not_panic() {
        let file = std::fs::read("/bin/ls").expect("every host has it");
        for length in 0..HEAD {
            for byte in [0, 1, 0xff] {
                let mut head = file[..length].to_vec();
                head.resize(HEAD, byte);
                if let Kind::Elf(headers) = kind(&head) {
                    assert!(headers.size() <= HEADER * MAX_HEADERS);
                    let _some_or_none = headers.interpreter(&head);
                }
                let _either = kind(&head[..length]);
            }
        }
    }

    #[test]
    fn a_zero_in_the_first_line_is_no_text() {
        assert!(is_text(b"echo hello\n\0"));
        assert!(is_text(b""));
        assert!(!is_text(b"\0\x01\x02"));
        assert!(!is_text(b"echo\0\n"));
    }
}
