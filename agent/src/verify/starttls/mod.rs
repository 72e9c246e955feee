//! What is spoken in the clear before a TLS handshake, up to the server's consent.
//!
//! Pure: bytes in, bytes out; [`super::probe`] does the talking and bounds the
//! time. What a server says before TLS is not to be trusted: it is bounded,
//! it is only ever shown in an error, and a byte behind the consent ends the
//! dialogue, because somebody in between could have put it there (RFC 3207,
//! section 6). No credentials are ever sent. Line protocols are here, the
//! others in [`binary`].

mod binary;

use reseal_proto::facts::printable;

pub(super) use binary::{MysqlAnswer, mysql_answer, mysql_login, mysql_packet};

use crate::discover::Starttls;

/// Of everything a server may say before TLS; bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Of a server's words in an error; characters.
const SHOWN: usize = 120;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum StarttlsError {
    /// It speaks the protocol and says no.
    #[error("the server speaks {protocol} and refuses TLS: {said:?}")]
    Refused {
        /// As labels write it.
        protocol: &'static str,
        /// Its words, shortened and printable.
        said: String,
    },
    /// It speaks the protocol and does not have it.
    #[error("the server speaks {0} and does not offer TLS")]
    NotOffered(&'static str),
    /// Another protocol, or none.
    #[error("the server does not speak {protocol}: it says {said:?}")]
    Unexpected {
        /// As labels write it.
        protocol: &'static str,
        /// Its words, shortened and printable.
        said: String,
    },
    /// A banner without an end.
    #[error("the server says more than {MOST_BYTES} bytes and does not come to TLS")]
    TooLong,
    /// Bytes behind the consent.
    #[error("the server says more after it has agreed to TLS: somebody may be in between")]
    Injected,
    /// The connection ended.
    #[error("the server closed the connection before TLS")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection broke before TLS")]
    Io(#[source] std::io::Error),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, then ask again.
    Send(Vec<u8>),
    /// Wait for the server.
    Receive,
    /// The TLS handshake comes now.
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was said by us.
    Start,
    /// SMTP only: `EHLO` was said.
    Greeted,
    /// TLS was asked for.
    Asked,
}

/// One side of the conversation: ours.
pub struct Dialogue {
    protocol: Starttls,
    state: State,
    /// Not yet understood.
    buffer: Vec<u8>,
    received: usize,
}

impl Dialogue {
    /// Before anything was said.
    pub fn new(protocol: Starttls) -> Self {
        Self { protocol, state: State::Start, buffer: Vec::new(), received: 0 }
    }

    /// The server said this.
    pub fn received(&mut self, bytes: &[u8]) -> Result<(), StarttlsError> {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > MOST_BYTES {
            return Err(StarttlsError::TooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// What to do after what was received so far.
    pub fn step(&mut self) -> Result<Step, StarttlsError> {
        match self.protocol {
            Starttls::None => Ok(Step::Ready),
            Starttls::Smtp => self.smtp(),
            Starttls::Imap => self.imap(),
            Starttls::Pop3 => self.pop3(),
            Starttls::Ftp => self.ftp(),
            Starttls::Ldap => self.ldap(),
            Starttls::Postgres => self.postgres(),
            Starttls::Mysql => self.mysql(),
        }
    }

    fn say(&mut self, state: State, bytes: &[u8]) -> Result<Step, StarttlsError> {
        self.state = state;
        Ok(Step::Send(bytes.to_vec()))
    }

    /// The server has agreed; it must have said nothing since.
    fn ready(&self) -> Result<Step, StarttlsError> {
        if self.buffer.is_empty() { Ok(Step::Ready) } else { Err(StarttlsError::Injected) }
    }

    fn refused(&self, said: &[u8]) -> StarttlsError {
        StarttlsError::Refused { protocol: self.protocol.name(), said: shown(said) }
    }

    fn unexpected(&self, said: &[u8]) -> StarttlsError {
        StarttlsError::Unexpected { protocol: self.protocol.name(), said: shown(said) }
    }

    /// RFC 3207, section 4.
    fn smtp(&mut self) -> Result<Step, StarttlsError> {
        let Some(reply) = self.reply()? else { return Ok(Step::Receive) };
        match self.state {
            State::Start if reply.code == 220 => self.say(State::Greeted, b"EHLO localhost\r\n"),
            State::Greeted if reply.code == 250 => {
                let offered = reply.lines().any(|line| line.eq_ignore_ascii_case(b"STARTTLS"));
                if !offered {
                    return Err(StarttlsError::NotOffered(self.protocol.name()));
                }
                self.say(State::Asked, b"STARTTLS\r\n")
            }
            State::Asked if reply.code == 220 => self.ready(),
            State::Start | State::Greeted | State::Asked => Err(self.refused(&reply.text)),
        }
    }

    /// RFC 9051, section 6.2.1.
    fn imap(&mut self) -> Result<Step, StarttlsError> {
        while let Some(line) = self.line() {
            let starts =
                |word: &[u8]| line.len() >= word.len() && line[..word.len()].eq_ignore_ascii_case(word);
            match self.state {
                State::Start if starts(b"* OK") => return self.say(State::Asked, b"a STARTTLS\r\n"),
                // A connection that is logged in already is never given TLS (7.1.4).
                State::Start if starts(b"* BYE") || starts(b"* PREAUTH") => return Err(self.refused(&line)),
                State::Start => return Err(self.unexpected(&line)),
                State::Greeted | State::Asked if starts(b"a OK") => return self.ready(),
                State::Greeted | State::Asked if starts(b"* BYE") => return Err(self.refused(&line)),
                State::Greeted | State::Asked if starts(b"* ") => {}
                State::Greeted | State::Asked if starts(b"a ") => return Err(self.refused(&line)),
                State::Greeted | State::Asked => return Err(self.unexpected(&line)),
            }
        }
        Ok(Step::Receive)
    }

    /// RFC 2595, section 4.
    fn pop3(&mut self) -> Result<Step, StarttlsError> {
        let Some(line) = self.line() else { return Ok(Step::Receive) };
        match (self.state, line.starts_with(b"+OK"), line.starts_with(b"-ERR")) {
            (State::Start, true, _) => self.say(State::Asked, b"STLS\r\n"),
            (State::Greeted | State::Asked, true, _) => self.ready(),
            (_, _, true) => Err(self.refused(&line)),
            (_, false, false) => Err(self.unexpected(&line)),
        }
    }

    /// RFC 4217, section 4. A server that is busy says 120 first (RFC 959, section 5.4).
    fn ftp(&mut self) -> Result<Step, StarttlsError> {
        while let Some(reply) = self.reply()? {
            match (self.state, reply.code) {
                (State::Start, 120) => {}
                (State::Start, 220) => return self.say(State::Asked, b"AUTH TLS\r\n"),
                (State::Greeted | State::Asked, 234) => return self.ready(),
                (State::Start | State::Greeted | State::Asked, _) => return Err(self.refused(&reply.text)),
            }
        }
        Ok(Step::Receive)
    }

    /// A whole line without its end, taken out of the buffer.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(line)
    }

    /// A whole reply of SMTP (RFC 5321, section 4.2) or FTP (RFC 959, section 4.2):
    /// lines up to the one that has the first line's code and a blank behind it.
    fn reply(&mut self) -> Result<Option<Reply>, StarttlsError> {
        let mut lines = self.buffer.split_inclusive(|byte| *byte == b'\n');
        let Some(first) = lines.next() else { return Ok(None) };
        let digits = first.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit));
        let code = digits.and_then(|code| std::str::from_utf8(code).ok()?.parse::<u16>().ok());
        let (Some(digits), Some(code)) = (digits, code) else {
            // Three bytes tell; fewer may still become a code.
            let telling = first.len() >= 3 || first.ends_with(b"\n");
            return if telling { Err(self.unexpected(first)) } else { Ok(None) };
        };
        let mut length = 0;
        for line in self.buffer.split_inclusive(|byte| *byte == b'\n') {
            if !line.ends_with(b"\n") {
                return Ok(None);
            }
            length += line.len();
            let last = line.starts_with(digits) && line.get(3).is_none_or(|byte| *byte != b'-');
            // A line inside that begins with another code belongs to the text (FTP).
            if last && line.get(3).is_none_or(|byte| byte.is_ascii_whitespace()) {
                let text = self.buffer.drain(..length).collect();
                return Ok(Some(Reply { code, text }));
            }
        }
        Ok(None)
    }
}

struct Reply {
    code: u16,
    /// All its lines.
    text: Vec<u8>,
}

impl Reply {
    /// What stands behind the codes.
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split(|byte| *byte == b'\n').filter_map(|line| line.get(4..)).map(<[u8]>::trim_ascii)
    }
}

/// The protocol whose servers speak first and greet so.
pub fn greeted_by(greeting: &[u8]) -> Option<Starttls> {
    let text = greeting.to_ascii_uppercase();
    let has = |word: &[u8]| text.windows(word.len()).any(|part| part == word);
    match &text[..] {
        [b'*', b' ', b'O', b'K', ..] => Some(Starttls::Imap),
        [b'+', b'O', b'K', ..] => Some(Starttls::Pop3),
        [b'2', b'2', b'0', b' ' | b'-', ..] if has(b"FTP") => Some(Starttls::Ftp),
        [b'2', b'2', b'0', b' ' | b'-', ..] => Some(Starttls::Smtp),
        // A packet of the MySQL protocol, number 0, that begins with version 10.
        [_, _, 0, 0, 10, ..] => Some(Starttls::Mysql),
        _ => None,
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN * 4)]).replace(['\r', '\n'], " ");
    printable(&text).trim().chars().take(SHOWN).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
