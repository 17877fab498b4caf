//! Typed views of the 512 bytes of a header.

/// Bytes in a block.
pub(super) const BLOCK: usize = 512;

/// A header block whose check sum is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// Which family of formats a header is of: they use its end differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Nothing there.
    V7,
    /// 155 bytes of prefix; PAX is this as well.
    Ustar,
    /// 131 bytes of prefix, then times.
    Star,
    /// Times and the map of a sparse file.
    Gnu,
}

impl<'a> Header<'a> {
    /// `None` if the check sum is wrong.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let stored = number(header.field(148, 8))?;
        // The sum takes its own field as spaces. Some old programs summed
        // signed characters.
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (index, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (stored == unsigned || stored == signed).then_some(header)
    }

    fn field(&self, offset: usize, length: usize) -> &'a [u8] {
        self.0.get(offset..offset + length).unwrap_or_default()
    }

    pub(super) fn family(&self) -> Family {
        match self.field(257, 8) {
            b"ustar  \0" => Family::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if self.field(508, 4) == b"tar\0" => Family::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Family::Ustar,
            _ => Family::V7,
        }
    }

    /// The path, with the prefix of those families that have one.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.family() {
            Family::Ustar => text(self.field(345, 155)),
            Family::Star => text(self.field(345, 131)),
            Family::V7 | Family::Gnu => b"",
        };
        let name = text(self.field(0, 100));
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(self.field(100, 8))
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(self.field(108, 8))
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(self.field(116, 8))
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(self.field(124, 12))
    }

    pub(super) fn modified(&self) -> Option<i64> {
        number(self.field(136, 12))
    }

    pub(super) fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(self.field(157, 100))
    }

    /// Major and minor number, which v7 has no place for.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        match self.family() {
            Family::V7 => Some((0, 0)),
            _ => Some((number(self.field(329, 8))?, number(self.field(337, 8))?)),
        }
    }

    /// The first pieces of a GNU sparse file, whether more follow, and its size.
    pub(super) fn sparse(&self) -> (&'a [u8], bool, Option<i64>) {
        let more = self.field(482, 1) != [0];
        (self.field(386, 4 * 24), more, number(self.field(483, 12)))
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits between spaces and NULs (nothing at all is zero), or
/// GNU's two's complement, marked by the top bit.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The mark is the first bit, the sign the second.
        let negative = first & 0x40 != 0;
        let top = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        let rest = field.get(1..).unwrap_or_default();
        let value = rest.iter().try_fold(top, |value, byte| {
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        })?;
        return i64::try_from(value).ok();
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !padding(byte))
        .unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    let length = digits.iter().position(padding).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(length);
    if !rest.iter().all(padding) {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_twos_complement() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"", None),
            (b"12x45670", None),
            (b"12 45670", None),
            (b"-1234567", None),
            (b"\x80\0\0\0\0\x01\0\0", Some(65_536)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
