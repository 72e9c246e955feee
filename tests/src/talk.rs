//! What is spoken with a service: before TLS begins, and one exchange inside it.
//!
//! The exchange is the application's own: a finished handshake alone does not show that a
//! service serves. Every read is bounded by the timeout of the connection.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};

/// A protocol, with TLS from the first byte unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// A request and its status.
    Http,
    /// A greeting and a farewell (RFC 8314).
    Smtps,
    /// The same behind STARTTLS (RFC 3207).
    Smtp,
    /// A greeting and LOGOUT (RFC 8314).
    Imaps,
    /// The same behind STARTTLS (RFC 9051, 6.2.1).
    Imap,
    /// A greeting and QUIT (RFC 8314).
    Pop3s,
    /// PING and PONG.
    Redis,
    /// CONNECT and CONNACK (MQTT 3.1.1, 3.1 and 3.2).
    Mqtt,
    /// SSLRequest, then a start-up that is answered (PostgreSQL, 55.2).
    Postgres,
    /// A line that comes back.
    Echo,
}

/// No line of a service is longer.
const LONGEST: usize = 4096;

impl Talk {
    /// As `openssl s_client -starttls` names it.
    pub fn starttls(self) -> Option<&'static str> {
        match self {
            Self::Smtp => Some("smtp"),
            Self::Imap => Some("imap"),
            Self::Postgres => Some("postgres"),
            Self::Http | Self::Smtps | Self::Imaps | Self::Pop3s | Self::Redis | Self::Mqtt | Self::Echo => {
                None
            }
        }
    }

    /// What comes before the handshake.
    pub fn before_tls(self, stream: &mut (impl Read + Write)) -> Result<()> {
        match self {
            Self::Smtp => {
                expect(stream, "220 ")?;
                ask(stream, "EHLO client.test\r\n", "250 ")?;
                ask(stream, "STARTTLS\r\n", "220 ")
            }
            Self::Imap => {
                expect(stream, "* OK")?;
                ask(stream, "a STARTTLS\r\n", "a OK")
            }
            Self::Postgres => {
                // Length 8, then the code of SSLRequest.
                stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
                let mut answer = [0];
                stream.read_exact(&mut answer)?;
                ensure!(answer == *b"S", "the server answered {answer:?} to SSLRequest");
                Ok(())
            }
            Self::Http | Self::Smtps | Self::Imaps | Self::Pop3s | Self::Redis | Self::Mqtt | Self::Echo => {
                Ok(())
            }
        }
    }

    /// One exchange; HTTP has its own.
    pub fn inside_tls(self, stream: &mut (impl Read + Write)) -> Result<()> {
        match self {
            Self::Http => bail!("HTTP is asked elsewhere"),
            Self::Smtps => {
                expect(stream, "220 ")?;
                ask(stream, "QUIT\r\n", "221 ")
            }
            Self::Smtp => {
                ask(stream, "EHLO client.test\r\n", "250 ")?;
                ask(stream, "QUIT\r\n", "221 ")
            }
            Self::Imaps => {
                expect(stream, "* OK")?;
                ask(stream, "a LOGOUT\r\n", "a OK")
            }
            Self::Imap => ask(stream, "b LOGOUT\r\n", "b OK"),
            Self::Pop3s => {
                expect(stream, "+OK")?;
                ask(stream, "QUIT\r\n", "+OK")
            }
            Self::Redis => ask(stream, "PING\r\n", "+PONG"),
            Self::Echo => ask(stream, "hello\r\n", "hello"),
            Self::Mqtt => {
                // CONNECT, protocol level 4, a clean session, keep-alive 60 s, no client id.
                stream.write_all(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 0])?;
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).context("no CONNACK")?;
                ensure!(answer == [0x20, 2, 0, 0], "CONNACK is {answer:?}");
                stream.write_all(&[0xe0, 0])?;
                Ok(())
            }
            Self::Postgres => {
                // Protocol 3.0, a user, the end.
                let parameters = b"\0\x03\0\0user\0pg\0database\0postgres\0\0";
                let length = u32::try_from(parameters.len() + 4)?;
                stream.write_all(&length.to_be_bytes())?;
                stream.write_all(parameters)?;
                let mut answer = [0; 9];
                stream.read_exact(&mut answer).context("no answer to the start-up")?;
                // AuthenticationOk: nothing else is wanted of this client.
                ensure!(
                    answer == [b'R', 0, 0, 0, 8, 0, 0, 0, 0],
                    "the start-up was answered with {answer:?}"
                );
                stream.write_all(&[b'X', 0, 0, 0, 4])?;
                Ok(())
            }
        }
    }
}

fn ask(stream: &mut (impl Read + Write), question: &str, begins: &str) -> Result<()> {
    stream.write_all(question.as_bytes()).with_context(|| format!("cannot say {question:?}"))?;
    expect(stream, begins)
}

/// Reads lines until one begins so; lines that go on (`250-…`, `* …`) are passed over.
fn expect(stream: &mut impl Read, begins: &str) -> Result<()> {
    for _ in 0..50 {
        let line = line(stream).with_context(|| format!("no line that begins with {begins:?}"))?;
        if line.starts_with(begins) {
            return Ok(());
        }
        let goes_on = line.as_bytes().get(3) == Some(&b'-') || line.starts_with("* ");
        ensure!(goes_on, "{line:?} instead of {begins:?}");
    }
    bail!("too many lines before {begins:?}");
}

fn line(stream: &mut impl Read) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LONGEST {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
