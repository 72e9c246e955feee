//! The one-time join token as text: `reseal1_` and base64url of a checksum and a message.
//!
//! The checksum finds a token that was cut or mistyped on its way; it is no
//! protection. What protects is the 32-byte secret, which the coordinator
//! stores hashed and compares in constant time.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;

use crate::identity::{self, IdentityError};
use crate::v1::JoinToken;

const PREFIX: &str = "reseal1_";
const CHECKSUM_BYTES: usize = 4;
/// A token longer than this is refused before it is looked at.
const MAX_CHARACTERS: usize = 4096;

/// Why a text is no join token. Never repeats the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Wrong prefix, alphabet or length.
    #[error("this is not a join token: it does not look like reseal1_...")]
    Form,
    /// The checksum differs.
    #[error("the join token is damaged: its checksum is wrong; copy it again, whole")]
    Checksum,
    /// Not a token message inside.
    #[error("the join token is damaged: {0}")]
    Content(&'static str),
    /// The names inside are not usable.
    #[error("the join token names a host or fleet that cannot be")]
    Name(#[source] IdentityError),
}

/// Writes a token as text.
pub fn encode(token: &JoinToken) -> String {
    let message = token.encode_to_vec();
    let mut bytes = checksum(&message).to_vec();
    bytes.extend(message);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Reads a token from text; white space around it is ignored.
pub fn decode(text: &str) -> Result<JoinToken, TokenError> {
    let text = text.trim();
    if text.len() > MAX_CHARACTERS {
        return Err(TokenError::Form);
    }
    let body = text.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Checksum)?;
    let (sum, message) = bytes.split_at_checked(CHECKSUM_BYTES).ok_or(TokenError::Checksum)?;
    if sum != checksum(message) {
        return Err(TokenError::Checksum);
    }
    let token = JoinToken::decode(message).map_err(|_| TokenError::Content("not a token message"))?;
    identity::check_name("fleet", &token.fleet).map_err(TokenError::Name)?;
    identity::check_name("host", &token.host).map_err(TokenError::Name)?;
    if token.ca_pin.len() != 32 {
        return Err(TokenError::Content("no pin of the control-plane CA"));
    }
    if token.coordinators.is_empty() {
        return Err(TokenError::Content("no coordinator address"));
    }
    Ok(token)
}

fn checksum(message: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, message);
    digest.as_ref()[..CHECKSUM_BYTES].try_into().expect("SHA-256 is longer than the checksum")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> JoinToken {
        JoinToken {
            fleet: "demo".into(),
            host: "h1".into(),
            id: "abc".into(),
            secret: "s".into(),
            expires_at: 1,
            ca_pin: vec![7; 32],
            coordinators: vec!["10.0.0.1:7443".into()],
        }
    }

    #[test]
    fn comes_back_whole() {
        assert_eq!(decode(&format!(" {}\n", encode(&sample()))).unwrap(), sample());
    }

    #[test]
    fn every_changed_character_is_found() {
        let text = encode(&sample());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(decode(std::str::from_utf8(&bytes).unwrap()).is_err(), "position {at}");
        }
    }

    #[test]
    fn a_giant_is_refused_unread() {
        let coordinators = vec!["x".repeat(MAX_CHARACTERS)];
        assert!(decode(&encode(&JoinToken { coordinators, ..sample() })).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "(reseal1_)?.{0,200}") {
            let _ = decode(&text);
        }
    }
}
