//! PKCS#12 (RFC 7292), protected by password.
//!
//! Written: one key and its chain, encrypted with PBES2 (PBKDF2 with
//! HMAC-SHA-256, AES-256-CBC; RFC 8018), integrity by HMAC-SHA-256: what OpenSSL
//! 3 and Java 11 and later open. Read: PBES2 with AES and a MAC of the SHA
//! family; the older password-based schemes (RC2, triple DES) are told by name.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, pbkdf2};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::der::{self, Reader};
use super::{Entries, KeyEntry, KeyStoreError, MAX_ENTRIES, MAX_ITERATIONS, Password};

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x01];
const SHROUDED_KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02];
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
const X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const HMAC_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x07];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const HMAC_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0a];
const HMAC_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0b];
const AES_128_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
const SHA1_OID: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA512_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];

/// Rounds for what is written, as Java has it: the password lies in a file beside it.
const ITERATIONS: u32 = 10_000;
const BROKEN: &str = "it is not built like PKCS#12";

/// Do these bytes begin like one?
pub fn looks_like(bytes: &[u8]) -> bool {
    // The head of a long file may be all there is: the outer length is not asked for.
    let version_3 = [der::INTEGER, 1, 3, der::SEQUENCE];
    bytes.first() == Some(&der::SEQUENCE) && (2..=6).any(|at| bytes.get(at..at + 4) == Some(&version_3))
}

/// A store with one key.
pub fn write(
    chain: &[CertificateDer<'_>],
    pkcs8: &[u8],
    password: &Password,
    alias: &str,
) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let leaf = chain.first().ok_or(KeyStoreError::Damaged("no certificate"))?;
    let id = digest::digest(&SHA256, leaf);
    let attributes = attributes(alias, id.as_ref());
    let mut bags = Vec::new();
    for (position, certificate) in chain.iter().enumerate() {
        let content = der::value(der::CONTEXT_0, &[&der::value(der::OCTETS, &[certificate])]);
        let bag = der::value(der::SEQUENCE, &[&oid(X509_CERTIFICATE), &content]);
        // The rest of the chain is found by its names.
        let attributes: &[u8] = if position == 0 { &attributes } else { &[] };
        bags.extend(safe_bag(CERT_BAG, &bag, attributes));
    }
    let certificates = encrypt(&der::value(der::SEQUENCE, &[&bags]), password)?;
    let (algorithm, hidden) = &certificates;
    let content = der::value(der::CONTEXT_0_OCTETS, &[hidden]);
    let content = der::value(der::SEQUENCE, &[&oid(DATA), algorithm, &content]);
    let encrypted = der::value(der::SEQUENCE, &[&der::integer(0), &content]);
    let (algorithm, hidden) = encrypt(pkcs8, password)?;
    let key = der::value(der::SEQUENCE, &[&algorithm, &der::value(der::OCTETS, &[&hidden])]);
    let keys = der::value(der::SEQUENCE, &[&safe_bag(SHROUDED_KEY_BAG, &key, &attributes)]);
    let safe = der::value(
        der::SEQUENCE,
        &[&content_info(ENCRYPTED_DATA, &encrypted), &content_info(DATA, &der::value(der::OCTETS, &[&keys]))],
    );
    let mac = mac_data(&safe, password)?;
    let safe = content_info(DATA, &der::value(der::OCTETS, &[&safe]));
    Ok(Zeroizing::new(der::value(der::SEQUENCE, &[&der::integer(3), &safe, &mac])))
}

/// Reads one. Most hide even their certificates without the password.
pub fn read(bytes: &[u8], password: Option<&Password>) -> Result<Entries, KeyStoreError> {
    let mut pfx = Reader::new(bytes).inside(der::SEQUENCE, BROKEN)?;
    if pfx.number(BROKEN)? != 3 {
        return Err(KeyStoreError::Damaged(BROKEN));
    }
    let (kind, content) = content_of(&mut pfx)?;
    if kind != DATA {
        return Err(KeyStoreError::Unsupported("a public key for its integrity".into()));
    }
    let safe = Reader::new(content).take(der::OCTETS, BROKEN)?;
    if let Some(password) = password
        && !pfx.is_empty()
    {
        check_mac(&mut pfx, safe, password)?;
    }
    let mut bags = Bags::default();
    let mut parts = Reader::new(safe).inside(der::SEQUENCE, BROKEN)?;
    while !parts.is_empty() {
        let (kind, content) = content_of(&mut parts)?;
        if kind == DATA {
            bags.read(Reader::new(content).take(der::OCTETS, BROKEN)?, password)?;
        } else if kind == ENCRYPTED_DATA {
            let Some(password) = password else {
                bags.hidden = true;
                continue;
            };
            let mut data = Reader::new(content).inside(der::SEQUENCE, BROKEN)?;
            data.number(BROKEN)?;
            let mut info = data.inside(der::SEQUENCE, BROKEN)?;
            info.take(der::OID, BROKEN)?;
            let algorithm = info.whole()?;
            let plain = decrypt(algorithm, info.take(der::CONTEXT_0_OCTETS, BROKEN)?, password)?;
            bags.read(&plain, Some(password))?;
        } else {
            return Err(KeyStoreError::Unsupported(format!("content of type {}", der::dotted(kind))));
        }
    }
    bags.entries()
}

/// A bag with its attributes: SafeBag of RFC 7292, section 4.2.
fn safe_bag(kind: &[u8], value: &[u8], attributes: &[u8]) -> Vec<u8> {
    der::value(der::SEQUENCE, &[&oid(kind), &der::value(der::CONTEXT_0, &[value]), attributes])
}

fn attributes(alias: &str, id: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = alias.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let attribute = |kind: &[u8], value: Vec<u8>| {
        der::value(der::SEQUENCE, &[&oid(kind), &der::value(der::SET, &[&value])])
    };
    let name = attribute(FRIENDLY_NAME, der::value(der::BMP_STRING, &[&name]));
    let id = attribute(LOCAL_KEY_ID, der::value(der::OCTETS, &[id]));
    // A SET OF is sorted by its members' encodings (X.690, section 11.6).
    let mut sorted = [name, id];
    sorted.sort();
    der::value(der::SET, &[&sorted[0], &sorted[1]])
}

fn content_info(kind: &[u8], content: &[u8]) -> Vec<u8> {
    der::value(der::SEQUENCE, &[&oid(kind), &der::value(der::CONTEXT_0, &[content])])
}

fn content_of<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), KeyStoreError> {
    let mut info = reader.inside(der::SEQUENCE, BROKEN)?;
    let kind = info.take(der::OID, BROKEN)?;
    Ok((kind, info.take(der::CONTEXT_0, BROKEN)?))
}

fn oid(bytes: &[u8]) -> Vec<u8> {
    der::value(der::OID, &[bytes])
}

fn random<const N: usize>() -> Result<[u8; N], KeyStoreError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyStoreError::Crypto)?;
    Ok(bytes)
}

/// The algorithm with its parameters (PBES2, RFC 8018 section 6.2), and what it made of the bytes.
fn encrypt(plain: &[u8], password: &Password) -> Result<(Vec<u8>, Vec<u8>), KeyStoreError> {
    let (salt, iv): ([u8; 16], [u8; 16]) = (random()?, random()?);
    let mut key = Zeroizing::new([0; 32]);
    let rounds = NonZeroU32::new(ITERATIONS).ok_or(KeyStoreError::Crypto)?;
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.utf8(), key.as_mut_slice());
    // Room for the padding: growing would leave an unzeroized copy behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
    buffer.extend_from_slice(plain);
    let failed = |_| KeyStoreError::Crypto;
    UnboundCipherKey::new(&AES_256, key.as_slice())
        .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
        .and_then(|key| key.less_safe_encrypt(&mut *buffer, EncryptionContext::Iv128(FixedLength::from(iv))))
        .map_err(failed)?;
    let prf = der::value(der::SEQUENCE, &[&oid(HMAC_SHA256), &[der::NULL, 0]]);
    let salt = der::value(der::OCTETS, &[&salt]);
    let parameters = der::value(der::SEQUENCE, &[&salt, &der::integer(ITERATIONS), &prf]);
    let derivation = der::value(der::SEQUENCE, &[&oid(PBKDF2), &parameters]);
    let scheme = der::value(der::SEQUENCE, &[&oid(AES_256_CBC), &der::value(der::OCTETS, &[&iv])]);
    let parameters = der::value(der::SEQUENCE, &[&derivation, &scheme]);
    Ok((der::value(der::SEQUENCE, &[&oid(PBES2), &parameters]), buffer.to_vec()))
}

fn decrypt(
    algorithm: &[u8],
    hidden: &[u8],
    password: &Password,
) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let unknown =
        |what: &str, kind: &[u8]| KeyStoreError::Unsupported(format!("{what} {}", der::dotted(kind)));
    let mut algorithm = Reader::new(algorithm).inside(der::SEQUENCE, BROKEN)?;
    let kind = algorithm.take(der::OID, BROKEN)?;
    if kind != PBES2 {
        return Err(unknown("the old encryption", kind));
    }
    let mut parameters = algorithm.inside(der::SEQUENCE, BROKEN)?;
    let mut derivation = parameters.inside(der::SEQUENCE, BROKEN)?;
    let kind = derivation.take(der::OID, BROKEN)?;
    if kind != PBKDF2 {
        return Err(unknown("the key derivation", kind));
    }
    let mut derivation = derivation.inside(der::SEQUENCE, BROKEN)?;
    let salt = derivation.take(der::OCTETS, BROKEN)?;
    let rounds = rounds(derivation.number(BROKEN)?)?;
    if derivation.peek() == Some(der::INTEGER) {
        derivation.number(BROKEN)?;
    }
    let prf = match derivation.is_empty() {
        true => HMAC_SHA1,
        false => derivation.inside(der::SEQUENCE, BROKEN)?.take(der::OID, BROKEN)?,
    };
    let prf = match prf {
        HMAC_SHA1 => pbkdf2::PBKDF2_HMAC_SHA1,
        HMAC_SHA256 => pbkdf2::PBKDF2_HMAC_SHA256,
        HMAC_SHA384 => pbkdf2::PBKDF2_HMAC_SHA384,
        HMAC_SHA512 => pbkdf2::PBKDF2_HMAC_SHA512,
        other => return Err(unknown("the key derivation with", other)),
    };
    let mut scheme = parameters.inside(der::SEQUENCE, BROKEN)?;
    let (cipher, length) = match scheme.take(der::OID, BROKEN)? {
        AES_128_CBC => (&AES_128, 16),
        AES_256_CBC => (&AES_256, 32),
        other => return Err(unknown("the cipher", other)),
    };
    let iv: [u8; 16] =
        scheme.take(der::OCTETS, BROKEN)?.try_into().map_err(|_| KeyStoreError::Damaged(BROKEN))?;
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(prf, rounds, salt, password.utf8(), &mut key[..length]);
    let mut buffer = Zeroizing::new(hidden.to_vec());
    // A wrong password shows in the padding where there is no MAC.
    let length = UnboundCipherKey::new(cipher, &key[..length])
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .and_then(|key| {
            key.decrypt(&mut buffer, DecryptionContext::Iv128(FixedLength::from(iv))).map(|plain| plain.len())
        })
        .map_err(|_| KeyStoreError::Password)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn rounds(wanted: u32) -> Result<NonZeroU32, KeyStoreError> {
    let rounds = NonZeroU32::new(wanted).ok_or(KeyStoreError::Damaged(BROKEN))?;
    if wanted > MAX_ITERATIONS {
        return Err(KeyStoreError::TooMuch("rounds of its key derivation"));
    }
    Ok(rounds)
}

/// MacData with HMAC-SHA-256.
fn mac_data(safe: &[u8], password: &Password) -> Result<Vec<u8>, KeyStoreError> {
    let salt: [u8; 16] = random()?;
    let key = mac_key(&SHA256, &salt, rounds(ITERATIONS)?, password);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), safe);
    let algorithm = der::value(der::SEQUENCE, &[&oid(SHA256_OID), &[der::NULL, 0]]);
    let info = der::value(der::SEQUENCE, &[&algorithm, &der::value(der::OCTETS, &[tag.as_ref()])]);
    let salt = der::value(der::OCTETS, &[&salt]);
    Ok(der::value(der::SEQUENCE, &[&info, &salt, &der::integer(ITERATIONS)]))
}

fn check_mac(pfx: &mut Reader<'_>, safe: &[u8], password: &Password) -> Result<(), KeyStoreError> {
    let mut mac = pfx.inside(der::SEQUENCE, BROKEN)?;
    let mut info = mac.inside(der::SEQUENCE, BROKEN)?;
    let kind = info.inside(der::SEQUENCE, BROKEN)?.take(der::OID, BROKEN)?;
    let (hash, with) = match kind {
        SHA1_OID => (&SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
        SHA256_OID => (&SHA256, hmac::HMAC_SHA256),
        SHA384_OID => (&SHA384, hmac::HMAC_SHA384),
        SHA512_OID => (&SHA512, hmac::HMAC_SHA512),
        other => return Err(KeyStoreError::Unsupported(format!("a MAC with {}", der::dotted(other)))),
    };
    let tag = info.take(der::OCTETS, BROKEN)?;
    let salt = mac.take(der::OCTETS, BROKEN)?;
    // Absent means once (RFC 7292, section 4).
    let wanted = if mac.is_empty() { 1 } else { mac.number(BROKEN)? };
    let key = mac_key(hash, salt, rounds(wanted)?, password);
    hmac::verify(&hmac::Key::new(with, &key), safe, tag).map_err(|_| KeyStoreError::Password)
}

/// The key of the MAC: RFC 7292, appendix B.2, purpose 3; one hash is long enough.
fn mac_key(
    hash: &'static digest::Algorithm,
    salt: &[u8],
    rounds: NonZeroU32,
    password: &Password,
) -> Zeroizing<Vec<u8>> {
    let block = hash.block_len();
    let mut secret = password.utf16();
    secret.extend_from_slice(&[0, 0]);
    let fill = |bytes: &[u8]| -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.iter().copied().cycle().take(bytes.len().div_ceil(block) * block).collect())
    };
    let mut context = digest::Context::new(hash);
    context.update(&vec![3; block]);
    context.update(&fill(salt));
    context.update(&fill(&secret));
    let mut key = context.finish();
    for _ in 1..rounds.get() {
        key = digest::digest(hash, key.as_ref());
    }
    Zeroizing::new(key.as_ref().to_vec())
}

/// What was in the bags, before keys and certificates are put together.
#[derive(Default)]
struct Bags {
    keys: Vec<(Attributes, Option<Zeroizing<Vec<u8>>>)>,
    certificates: Vec<(Attributes, CertificateDer<'static>)>,
    /// There is more, which needs the password.
    hidden: bool,
}

#[derive(Default)]
struct Attributes {
    name: Option<String>,
    id: Option<Vec<u8>>,
}

impl Bags {
    fn read(&mut self, contents: &[u8], password: Option<&Password>) -> Result<(), KeyStoreError> {
        let mut bags = Reader::new(contents).inside(der::SEQUENCE, BROKEN)?;
        while !bags.is_empty() {
            let mut bag = bags.inside(der::SEQUENCE, BROKEN)?;
            let kind = bag.take(der::OID, BROKEN)?;
            let value = bag.take(der::CONTEXT_0, BROKEN)?;
            let attributes = Attributes::read(&mut bag)?;
            match kind {
                KEY_BAG => self.keys.push((attributes, Some(Zeroizing::new(value.to_vec())))),
                SHROUDED_KEY_BAG => {
                    let mut info = Reader::new(value).inside(der::SEQUENCE, BROKEN)?;
                    let algorithm = info.whole()?;
                    let hidden = info.take(der::OCTETS, BROKEN)?;
                    let key = password.map(|password| decrypt(algorithm, hidden, password)).transpose()?;
                    self.keys.push((attributes, key));
                }
                CERT_BAG => {
                    let mut value = Reader::new(value).inside(der::SEQUENCE, BROKEN)?;
                    if value.take(der::OID, BROKEN)? == X509_CERTIFICATE {
                        let der = value.inside(der::CONTEXT_0, BROKEN)?.take(der::OCTETS, BROKEN)?;
                        self.certificates.push((attributes, CertificateDer::from(der.to_vec())));
                    }
                }
                // CRLs and secrets are nobody's certificate.
                _ => {}
            }
            if self.keys.len() + self.certificates.len() > MAX_ENTRIES {
                return Err(KeyStoreError::TooMuch("entries"));
            }
        }
        Ok(())
    }

    /// A key's leaf has its id, or is the first certificate where there is one key only.
    fn entries(mut self) -> Result<Entries, KeyStoreError> {
        if self.certificates.is_empty() && self.hidden {
            return Err(KeyStoreError::PasswordNeeded);
        }
        let mut entries = Entries::default();
        let only = self.keys.len() == 1;
        for (attributes, key) in self.keys {
            let same = |other: &Attributes| attributes.id.is_some() && other.id == attributes.id;
            let leaf = self.certificates.iter().position(|(other, _)| same(other));
            let leaf = leaf.or((only && !self.certificates.is_empty()).then_some(0));
            let mut chain: Vec<CertificateDer<'static>> = Vec::new();
            if let Some(leaf) = leaf {
                chain.push(self.certificates.remove(leaf).1);
                while let Some(next) = issuer(&chain, &self.certificates) {
                    chain.push(self.certificates[next].1.clone());
                }
            }
            entries.keys.push(KeyEntry { alias: attributes.name, key, chain });
        }
        let used = |der: &CertificateDer<'_>| entries.keys.iter().any(|entry| entry.chain.contains(der));
        let rest = self.certificates.into_iter().map(|(_, der)| der).filter(|der| !used(der)).collect();
        entries.certificates = rest;
        Ok(entries)
    }
}

/// Which certificate is the issuer of the last of the chain, by name, and not in it yet?
fn issuer(chain: &[CertificateDer<'_>], all: &[(Attributes, CertificateDer<'static>)]) -> Option<usize> {
    let last = reseal_proto::facts::parse(chain.last()?).ok()?;
    if last.issuer() == last.subject() || chain.len() >= crate::pem::MAX_CERTIFICATES {
        return None;
    }
    all.iter().position(|(_, der)| {
        let found = reseal_proto::facts::parse(der);
        !chain.contains(der) && found.is_ok_and(|found| found.subject() == last.issuer())
    })
}

impl Attributes {
    fn read(bag: &mut Reader<'_>) -> Result<Self, KeyStoreError> {
        let mut found = Self::default();
        if bag.is_empty() {
            return Ok(found);
        }
        let mut set = bag.inside(der::SET, BROKEN)?;
        while !set.is_empty() {
            let mut attribute = set.inside(der::SEQUENCE, BROKEN)?;
            let kind = attribute.take(der::OID, BROKEN)?;
            let mut values = attribute.inside(der::SET, BROKEN)?;
            if values.is_empty() {
                continue;
            }
            let (_, value) = values.any()?;
            match kind {
                FRIENDLY_NAME => {
                    let units = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                    found.name = Some(String::from_utf16_lossy(&units.collect::<Vec<_>>()));
                }
                LOCAL_KEY_ID => found.id = Some(value.to_vec()),
                _ => {}
            }
        }
        Ok(found)
    }
}
