//! The Java key store, version 2, as OpenJDK's `sun.security.provider.JavaKeyStore`
//! reads and writes it.
//!
//! A header, entries, and a SHA-1 over password and content. Certificates lie in
//! it in the clear; a private key is hidden by a stream of SHA-1 of password and
//! salt. Both are what the format has and no more: who can, uses PKCS#12. The
//! same password protects store and key.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::der::{self, Reader};
use super::{Entries, KeyEntry, KeyStoreError, MAX_ENTRIES, Password};

const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
const KEY: u32 = 1;
const CERTIFICATE: u32 = 2;
const X509: &[u8] = b"X.509";
/// Part of what the store's digest is made over.
const WHITENER: &[u8] = b"Mighty Aphrodite";
const DIGEST: usize = 20;
/// 1.3.6.1.4.1.42.2.17.1.1, the key protector of JavaKeyStore.
const PROTECTOR: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x2a, 0x02, 0x11, 0x01, 0x01];

/// Do these bytes begin like one?
pub fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// A store with one key. `created` is in seconds since the Unix epoch.
pub fn write(
    chain: &[CertificateDer<'_>],
    pkcs8: &[u8],
    password: &Password,
    alias: &str,
    created: i64,
) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let secret = password.utf16();
    let protected = protect(pkcs8, &secret)?;
    let algorithm = der::value(der::SEQUENCE, &[&der::value(der::OID, &[PROTECTOR]), &[der::NULL, 0]]);
    let key = der::value(der::SEQUENCE, &[&algorithm, &der::value(der::OCTETS, &[&protected])]);
    let mut store = Vec::new();
    store.extend_from_slice(&MAGIC);
    [2, 1, KEY].iter().for_each(|number: &u32| store.extend_from_slice(&number.to_be_bytes()));
    text(&mut store, alias.as_bytes());
    store.extend_from_slice(&created.saturating_mul(1000).to_be_bytes());
    block(&mut store, &key);
    store.extend_from_slice(&length(chain.len()).to_be_bytes());
    for certificate in chain {
        text(&mut store, X509);
        block(&mut store, certificate);
    }
    let digest = digest(&[&secret, WHITENER, &store]);
    store.extend_from_slice(&digest);
    Ok(Zeroizing::new(store))
}

/// Reads one; without a password its keys stay hidden and its integrity unchecked.
pub fn read(bytes: &[u8], password: Option<&Password>) -> Result<Entries, KeyStoreError> {
    let end = bytes.len().saturating_sub(DIGEST);
    let (content, sum) = bytes.split_at(end);
    let mut input = Input(content);
    if input.take(4)? != MAGIC {
        return Err(KeyStoreError::Damaged("it does not begin like a Java key store"));
    }
    match input.number()? {
        2 => {}
        version => {
            return Err(KeyStoreError::Unsupported(format!("version {version} of the Java key store")));
        }
    }
    let secret = password.map(Password::utf16);
    if let Some(secret) = &secret
        && digest(&[secret, WHITENER, content]) != sum
    {
        return Err(KeyStoreError::Password);
    }
    let count = input.number()?;
    if count as usize > MAX_ENTRIES {
        return Err(KeyStoreError::TooMuch("entries"));
    }
    let mut entries = Entries::default();
    for _ in 0..count {
        let kind = input.number()?;
        let alias = String::from_utf8_lossy(input.text()?).into_owned();
        input.take(8)?;
        match kind {
            KEY => {
                let protected = input.block()?;
                let key = secret.as_ref().map(|secret| unprotect(protected, secret)).transpose()?;
                let count = input.number()?;
                if count as usize > crate::pem::MAX_CERTIFICATES {
                    return Err(KeyStoreError::TooMuch("certificates"));
                }
                let chain = (0..count).map(|_| input.certificate()).collect::<Result<_, _>>()?;
                entries.keys.push(KeyEntry { alias: Some(alias), key, chain });
            }
            CERTIFICATE => entries.certificates.push(input.certificate()?),
            _ => return Err(KeyStoreError::Damaged("an entry is neither key nor certificate")),
        }
    }
    Ok(entries)
}

/// Salt, the hidden key, and a digest to know it by.
fn protect(plain: &[u8], secret: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
    let mut salt = [0; DIGEST];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| KeyStoreError::Crypto)?;
    let mut protected = salt.to_vec();
    protected.extend(mask(plain, secret, salt).iter());
    protected.extend_from_slice(&digest(&[secret, plain]));
    Ok(protected)
}

fn unprotect(bytes: &[u8], secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    const BROKEN: &str = "a key is not protected as JavaKeyStore does";
    let mut info = Reader::new(bytes).inside(der::SEQUENCE, BROKEN)?;
    let algorithm = info.inside(der::SEQUENCE, BROKEN)?.take(der::OID, BROKEN)?;
    if algorithm != PROTECTOR {
        return Err(KeyStoreError::Unsupported(format!("the key protection {}", der::dotted(algorithm))));
    }
    let protected = info.take(der::OCTETS, BROKEN)?;
    let (Some((salt, rest)), true) = (protected.split_first_chunk(), protected.len() >= 2 * DIGEST) else {
        return Err(KeyStoreError::Damaged(BROKEN));
    };
    let (hidden, check) = rest.split_at(rest.len() - DIGEST);
    let plain = mask(hidden, secret, *salt);
    if digest(&[secret, &plain]) != check {
        return Err(KeyStoreError::Password);
    }
    Ok(plain)
}

/// Hides and shows: each digest is made of the one before.
fn mask(bytes: &[u8], secret: &[u8], salt: [u8; DIGEST]) -> Zeroizing<Vec<u8>> {
    let mut masked = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let mut stream = Zeroizing::new(salt);
    for part in bytes.chunks(DIGEST) {
        *stream = digest(&[secret, stream.as_slice()]);
        masked.extend(part.iter().zip(stream.iter()).map(|(byte, key)| byte ^ key));
    }
    masked
}

fn digest(parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn text(store: &mut Vec<u8>, text: &[u8]) {
    store.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend_from_slice(text);
}

fn block(store: &mut Vec<u8>, bytes: &[u8]) {
    store.extend_from_slice(&length(bytes.len()).to_be_bytes());
    store.extend_from_slice(bytes);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], KeyStoreError> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or(KeyStoreError::Damaged("it ends in the middle"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, KeyStoreError> {
        Ok(self.take(4)?.iter().fold(0, |number, digit| number << 8 | u32::from(*digit)))
    }

    fn text(&mut self) -> Result<&'a [u8], KeyStoreError> {
        let count = self.take(2)?.iter().fold(0, |number, digit| number << 8 | usize::from(*digit));
        self.take(count)
    }

    fn block(&mut self) -> Result<&'a [u8], KeyStoreError> {
        let count = self.number()?;
        self.take(count as usize)
    }

    fn certificate(&mut self) -> Result<CertificateDer<'static>, KeyStoreError> {
        match self.text()? {
            X509 => Ok(CertificateDer::from(self.block()?.to_vec())),
            _ => Err(KeyStoreError::Unsupported("certificates that are not X.509".into())),
        }
    }
}
