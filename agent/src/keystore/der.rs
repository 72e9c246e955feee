//! As much of DER (X.690) as key stores need: definite lengths, tags of one byte.

use super::KeyStoreError;

/// BOOLEAN and the rest are not met in key stores.
pub const INTEGER: u8 = 0x02;
/// Bytes.
pub const OCTETS: u8 = 0x04;
/// NULL.
pub const NULL: u8 = 0x05;
/// OBJECT IDENTIFIER.
pub const OID: u8 = 0x06;
/// UTF-16, big-endian.
pub const BMP_STRING: u8 = 0x1e;
/// SEQUENCE (OF).
pub const SEQUENCE: u8 = 0x30;
/// SET (OF).
pub const SET: u8 = 0x31;
/// `[0]`, constructed.
pub const CONTEXT_0: u8 = 0xa0;
/// `[0]` in the place of an OCTET STRING.
pub const CONTEXT_0_OCTETS: u8 = 0x80;

/// One value: tag, length, the parts behind one another.
pub fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(length + 6);
    bytes.push(tag);
    match u8::try_from(length) {
        Ok(short @ 0..=127) => bytes.push(short),
        _ => {
            let long = length.to_be_bytes();
            let digits = &long[long.iter().position(|byte| *byte != 0).unwrap_or(0)..];
            bytes.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            bytes.extend_from_slice(digits);
        }
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A number that is not negative.
pub fn integer(number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(3);
    let digits = &bytes[first..];
    // A leading bit would make it negative.
    if digits[0] & 0x80 != 0 { value(INTEGER, &[&[0], digits]) } else { value(INTEGER, &[digits]) }
}

/// Reads values one behind the other.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Nothing is left.
    pub fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    /// The tag of the next value.
    pub fn peek(self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next value: tag and content.
    pub fn any(&mut self) -> Result<(u8, &'a [u8]), KeyStoreError> {
        let (tag, content, _) = self.next()?;
        Ok((tag, content))
    }

    /// The content of the next value, which has this tag.
    pub fn take(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], KeyStoreError> {
        match self.any()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(KeyStoreError::Damaged(what)),
        }
    }

    /// A reader of the content of the next value, which has this tag.
    pub fn inside(&mut self, tag: u8, what: &'static str) -> Result<Self, KeyStoreError> {
        self.take(tag, what).map(Self::new)
    }

    /// The next value as it stands, tag and length included.
    pub fn whole(&mut self) -> Result<&'a [u8], KeyStoreError> {
        self.next().map(|(_, _, whole)| whole)
    }

    /// A number below 2^32.
    pub fn number(&mut self, what: &'static str) -> Result<u32, KeyStoreError> {
        let bytes = self.take(INTEGER, what)?;
        let digits = bytes.strip_prefix(&[0]).unwrap_or(bytes);
        if bytes.is_empty() || bytes[0] & 0x80 != 0 || digits.len() > 4 {
            return Err(KeyStoreError::Damaged(what));
        }
        Ok(digits.iter().fold(0, |number, digit| number << 8 | u32::from(*digit)))
    }

    fn next(&mut self) -> Result<(u8, &'a [u8], &'a [u8]), KeyStoreError> {
        let damaged = KeyStoreError::Damaged("a value has no length, or one beyond its end");
        let [tag, first, tail @ ..] = self.rest else { return Err(damaged) };
        let (length, tail) = match first {
            0..=0x7f => (usize::from(*first), tail),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let digits = tail.get(..count).ok_or(damaged)?;
                let length = digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
                (length, &tail[count..])
            }
            0x80 => return Err(KeyStoreError::Unsupported("BER with indefinite lengths".into())),
            _ => return Err(damaged),
        };
        let content = tail.get(..length).ok_or(KeyStoreError::Damaged("a value ends beyond its end"))?;
        let header = self.rest.len() - tail.len();
        let whole = &self.rest[..header + length];
        self.rest = &tail[length..];
        Ok((*tag, content, whole))
    }
}

/// An object identifier in its usual form, for messages.
pub fn dotted(oid: &[u8]) -> String {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc = 0_u64;
    for byte in oid.iter().take(64) {
        arc = arc << 7 & (u64::MAX >> 1) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            match arcs.is_empty() {
                true => arcs.extend([(arc / 40).min(2), arc - (arc / 40).min(2) * 40]),
                false => arcs.push(arc),
            }
            arc = 0;
        }
    }
    arcs.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}
