//! The little of X.690 that recognising takes: tag, length, content. Pure.

/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// INTEGER.
pub const INTEGER: u8 = 0x02;
/// BIT STRING.
pub const BITS: u8 = 0x03;
/// OCTET STRING.
pub const OCTETS: u8 = 0x04;
/// OBJECT IDENTIFIER.
pub const OID: u8 = 0x06;

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// The identifier octet.
    pub tag: u8,
    /// Without tag and length.
    pub content: &'a [u8],
    /// With them.
    pub raw: &'a [u8],
}

/// The first value of `input`, and what follows it. Definite lengths of at most
/// four octets, as everything that is looked for has.
pub fn value(input: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (header, length) = header(input)?;
    let end = header.checked_add(length)?;
    let raw = input.get(..end)?;
    Some((Value { tag: input[0], content: &raw[header..], raw }, &input[end..]))
}

/// The first value's bytes, with tag and length.
pub fn first(input: &[u8]) -> Option<&[u8]> {
    value(input).map(|(value, _)| value.raw)
}

/// Size of tag and length, and the length of the content, which may not be all there.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    let (&tag, rest) = input.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&short, rest) = rest.split_first()?;
    if short < 0x80 {
        return Some((2, usize::from(short)));
    }
    let octets = usize::from(short & 0x7f);
    if !(1..=4).contains(&octets) {
        return None;
    }
    let length = rest.get(..octets)?.iter().fold(0_usize, |length, octet| length << 8 | usize::from(*octet));
    Some((2 + octets, length))
}

/// Does one SEQUENCE fill a file of `size` bytes, but for an end of line?
pub fn whole_value(head: &[u8], size: u64) -> bool {
    let Some((header, length)) = header(head) else { return false };
    let end = (header + length) as u64;
    head[0] == SEQUENCE && length > 0 && (end..=end + 2).contains(&size)
}

/// The values in a SEQUENCE, one after the other.
#[derive(Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of the SEQUENCE that `input` begins with.
    pub fn of(input: &'a [u8]) -> Option<Self> {
        let (value, _) = value(input)?;
        (value.tag == SEQUENCE).then_some(Self(value.content))
    }

    /// The next value.
    pub fn any(&mut self) -> Option<Value<'a>> {
        let (value, rest) = value(self.0)?;
        self.0 = rest;
        Some(value)
    }

    /// The next value, if it has this tag.
    pub fn take(&mut self, tag: u8) -> Option<Value<'a>> {
        let (value, rest) = value(self.0)?;
        if value.tag != tag {
            return None;
        }
        self.0 = rest;
        Some(value)
    }
}

/// Writes a value.
pub fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or_default());
    } else {
        let octets = length.to_be_bytes();
        let skipped = octets.iter().take_while(|octet| **octet == 0).count();
        out.push(0x80 | u8::try_from(octets.len() - skipped).unwrap_or_default());
        out.extend_from_slice(&octets[skipped..]);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}
