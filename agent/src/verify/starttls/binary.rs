//! TLS within LDAP, PostgreSQL and MySQL: packets instead of lines. Pure.

use super::{Dialogue, MOST_BYTES, StarttlsError, State, Step};

/// ExtendedRequest of StartTLS, message 1 (RFC 4511, sections 4.12 and 4.14.1).
const LDAP_REQUEST: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
/// Length 8, code 80877103 (PostgreSQL, "Message Formats", SSLRequest).
const POSTGRES_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Capability flags (MySQL internals manual, "Capabilities Flags").
const CLIENT_LONG_PASSWORD: u32 = 1;
const CLIENT_PROTOCOL_41: u32 = 0x200;
const CLIENT_SSL: u32 = 0x800;
const CLIENT_SECURE_CONNECTION: u32 = 0x8000;
/// utf8mb4_general_ci.
const CHARSET: u8 = 45;

/// In the server's log of denied logins.
const MYSQL_USER: &[u8] = b"reseal-probe";

/// An element of BER: tag, content, its whole length. `None`: not all of it is here.
type Element<'a> = Option<(u8, &'a [u8], usize)>;

impl Dialogue {
    pub(super) fn ldap(&mut self) -> Result<Step, StarttlsError> {
        if self.state == State::Start {
            return self.say(State::Asked, LDAP_REQUEST);
        }
        let malformed = |()| self.unexpected(&self.buffer);
        if self.buffer.first().is_some_and(|tag| *tag != 0x30) {
            return Err(malformed(()));
        }
        let Some((tag, message, length)) = element(&self.buffer).map_err(malformed)? else {
            return Ok(Step::Receive);
        };
        let answer = (tag == 0x30).then(|| ldap_result(message)).flatten();
        let Some((result, said)) = answer else { return Err(self.unexpected(&self.buffer)) };
        if result != 0 {
            let said =
                if said.is_empty() { format!("result code {result}").into_bytes() } else { said.to_vec() };
            return Err(self.refused(&said));
        }
        self.buffer.drain(..length);
        self.ready()
    }

    pub(super) fn postgres(&mut self) -> Result<Step, StarttlsError> {
        if self.state == State::Start {
            return self.say(State::Asked, &POSTGRES_REQUEST);
        }
        match self.buffer.first() {
            None => Ok(Step::Receive),
            Some(b'S') => {
                self.buffer.remove(0);
                self.ready()
            }
            Some(b'N') => Err(StarttlsError::NotOffered(self.protocol.name())),
            Some(_) => Err(self.unexpected(&self.buffer)),
        }
    }

    pub(super) fn mysql(&mut self) -> Result<Step, StarttlsError> {
        if self.state != State::Start {
            return self.ready();
        }
        let [a, b, c, number, ..] = self.buffer[..] else { return Ok(Step::Receive) };
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        if number != 0 || length == 0 || length > MOST_BYTES {
            return Err(self.unexpected(&self.buffer));
        }
        let Some(packet) = self.buffer.get(4..4 + length) else { return Ok(Step::Receive) };
        if packet[0] == 0xff {
            return Err(self.refused(packet.get(3..).unwrap_or_default()));
        }
        let Some(flags) = mysql_flags(packet) else { return Err(self.unexpected(packet)) };
        if u32::from(flags) & CLIENT_SSL == 0 {
            return Err(StarttlsError::NotOffered(self.protocol.name()));
        }
        self.buffer.drain(..4 + length);
        // The handshake follows the request at once: nothing may have come before it.
        self.ready()?;
        self.say(State::Asked, &mysql_packet(1, &mysql_head()))
    }
}

/// Lower half of the capability flags in the server's first packet, protocol 10:
/// version string, NUL, thread id (4), salt (8), NUL, flags (2).
fn mysql_flags(packet: &[u8]) -> Option<u16> {
    let (10, rest) = packet.split_first()? else { return None };
    let end = rest.iter().position(|byte| *byte == 0)?;
    let flags = rest.get(end + 1 + 4 + 8 + 1..)?;
    Some(u16::from_le_bytes([*flags.first()?, *flags.get(1)?]))
}

/// What both of our packets begin with; alone it is the SSLRequest.
fn mysql_head() -> Vec<u8> {
    let flags = CLIENT_LONG_PASSWORD | CLIENT_PROTOCOL_41 | CLIENT_SSL | CLIENT_SECURE_CONNECTION;
    let mut head = flags.to_le_bytes().to_vec();
    head.extend(0x0100_0000_u32.to_le_bytes());
    head.push(CHARSET);
    head.resize(32, 0);
    head
}

/// A login by a user who does not exist (HandshakeResponse41), after TLS.
pub(in super::super) fn mysql_login() -> Vec<u8> {
    let mut login = mysql_head();
    login.extend(MYSQL_USER);
    // The end of the name; no proof.
    login.extend([0, 0]);
    mysql_packet(2, &login)
}

/// Length, number, payload; our payloads are short.
pub(in super::super) fn mysql_packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![u8::try_from(payload.len()).unwrap_or(u8::MAX), 0, 0, number];
    packet.extend(payload);
    packet
}

/// What a server says to a login.
pub(in super::super) enum MysqlAnswer {
    /// No.
    Denied,
    /// Yes.
    LetIn,
    /// Something else first.
    More,
}

/// Reads it from the packet's first byte.
pub(in super::super) fn mysql_answer(packet: &[u8]) -> MysqlAnswer {
    match packet.first() {
        Some(0x00) => MysqlAnswer::LetIn,
        // AuthSwitchRequest, AuthMoreData.
        Some(0xfe | 0x01) => MysqlAnswer::More,
        Some(_) | None => MysqlAnswer::Denied,
    }
}

/// Result code and diagnostic message of the ExtendedResponse to message 1.
fn ldap_result(message: &[u8]) -> Option<(u8, &[u8])> {
    let next = |bytes| element(bytes).ok().flatten();
    let (0x02, [1], length) = next(message)? else { return None };
    let (0x78, response, _) = next(&message[length..])? else { return None };
    let (0x0a, [result], length) = next(response)? else { return None };
    let rest = &response[length..];
    let (0x04, _, length) = next(rest)? else { return None };
    let (0x04, said, _) = next(&rest[length..])? else { return None };
    Some((*result, said))
}

/// The first element (X.690, section 8.1; definite lengths of at most two bytes,
/// more than what is read of any server).
fn element(bytes: &[u8]) -> Result<Element<'_>, ()> {
    let [tag, first, rest @ ..] = bytes else { return Ok(None) };
    let (head, length) = match (first, rest) {
        (0..=0x7f, _) => (2, usize::from(*first)),
        (0x81, [length, ..]) => (3, usize::from(*length)),
        (0x82, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        // OpenLDAP writes four bytes.
        (0x84, [0, 0, high, low, ..]) => (6, usize::from(u16::from_be_bytes([*high, *low]))),
        (0x81 | 0x82, _) => return Ok(None),
        (0x84, short) if short.len() < 4 && short.iter().take(2).all(|byte| *byte == 0) => return Ok(None),
        _ => return Err(()),
    };
    if length > MOST_BYTES {
        return Err(());
    }
    Ok(bytes.get(head..head + length).map(|content| (*tag, content, head + length)))
}
