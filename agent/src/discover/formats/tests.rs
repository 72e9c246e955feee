use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;
use crate::pem as writer;

/// A certificate for `name` and its key, DER.
fn own(name: &str) -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
    (certificate.der().to_vec(), key.serialize_der())
}

fn block(label: &str, der: &[u8]) -> String {
    writer::certificates([der]).replace("CERTIFICATE", label)
}

/// The document within a PKCS#8 document.
fn inner(pkcs8: &[u8]) -> Vec<u8> {
    let mut fields = der::Fields::of(pkcs8).unwrap();
    fields.take(der::INTEGER).unwrap();
    fields.take(der::SEQUENCE).unwrap();
    fields.take(der::OCTETS).unwrap().content.to_vec()
}

#[test]
fn a_bundle_in_any_order_among_other_text() {
    let (leaf, key) = own("a.test");
    let (other, _) = own("b.test");
    let text = format!(
        "# my bundle\r\n{}noise\n{}-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n{}",
        block("PRIVATE KEY", &key).replace('\n', "\r\n"),
        block("CERTIFICATE", &other),
        block("X509 CERTIFICATE", &leaf),
    );
    let content = read(text.as_bytes()).unwrap();
    assert_eq!((content.format, content.count, content.keys.len()), (Format::Pem, 2, 1));
    let spki = content.keys[0].spki_sha256.unwrap();
    assert_eq!(content.certificates[1].facts.spki_sha256, spki);
    assert_ne!(content.certificates[0].facts.spki_sha256, spki);
    assert_eq!(content.certificates[1].facts.names, ["a.test"]);
    assert!(content.certificates[1].self_signed && !content.certificates[1].authority);
}

#[test]
fn a_damaged_block_takes_no_other_with_it() {
    let (leaf, key) = own("a.test");
    let torn = block("CERTIFICATE", &leaf);
    let torn = &torn[..torn.len() / 2];
    let text = format!("{torn}\n{}{}", block("CERTIFICATE", &leaf), block("PRIVATE KEY", &key[..20]));
    let content = read(text.as_bytes()).unwrap();
    assert_eq!(content.count, 1);
    // It is there, whatever it is.
    assert_eq!(content.keys, [Key { spki_sha256: None, encrypted: false }]);
}

#[test]
fn every_form_of_a_key_has_the_same_public_key() {
    let ec = KeyPair::generate().unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for pair in [&ec, &ed, &p384] {
        let certificate = CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(pair).unwrap();
        let kept = certificate::read_all(&[certificate.der().to_vec()]);
        let pkcs8 = pair.serialize_der();
        assert!(key::is_private(&pkcs8));
        assert_eq!(key::spki_sha256(&pkcs8).unwrap().as_slice(), kept[0].facts.spki_sha256);
    }
    // SEC1 with its curve, which PKCS#8 has outside; with and without the public key.
    let pkcs8 = ec.serialize_der();
    let sec1 = inner(&pkcs8);
    let mut fields = der::Fields::of(&sec1).unwrap();
    let (version, secret) = (fields.any().unwrap().raw, fields.any().unwrap().raw);
    let public = std::iter::from_fn(|| fields.any()).find(|field| field.tag == 0xa1).unwrap().raw;
    let curve =
        der::write(0xa0, &[&der::write(der::OID, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]])]);
    for document in [
        der::write(der::SEQUENCE, &[version, secret, &curve, public]),
        der::write(der::SEQUENCE, &[version, secret, &curve]),
    ] {
        assert!(key::is_private(&document));
        assert_eq!(key::spki_sha256(&document), key::spki_sha256(&pkcs8));
    }
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let document: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let pkcs1 = inner(document.as_ref());
    assert!(key::is_private(&pkcs1));
    let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
        aws_lc_rs::signature::KeyPair::public_key(&rsa).as_der().unwrap();
    let expected = reseal_proto::facts::sha256(public.as_ref());
    assert_eq!(key::spki_sha256(&pkcs1), Some(expected));
    assert_eq!(key::spki_sha256(document.as_ref()), Some(expected));
}

#[test]
fn der_is_recognised_whole_and_alone() {
    let (leaf, key) = own("a.test");
    assert_eq!(read(&leaf).unwrap().format, Format::Der);
    let content = read(&key).unwrap();
    assert_eq!((content.count, content.keys.len()), (0, 1));
    // Its length says that it is no certificate.
    assert_eq!(may_be(&leaf[..100], 5000), None);
    assert_eq!(may_be(&leaf[..100], leaf.len() as u64), Some(Format::Der));
    assert_eq!(read(&leaf[..leaf.len() - 1]), None);
}

#[test]
fn passphrases_are_seen_and_nothing_else() {
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let modern = block("ENCRYPTED PRIVATE KEY", b"anything");
    for text in [legacy, &modern] {
        assert_eq!(read(text.as_bytes()).unwrap().keys, [Key { spki_sha256: None, encrypted: true }]);
    }
    // Keys of SSH are no business of ours.
    assert_eq!(read(block("OPENSSH PRIVATE KEY", b"x").as_bytes()), None);
}

#[test]
fn a_trust_store_is_counted() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let text = block("CERTIFICATE", authority.der()).repeat(MAX_KEPT + 1);
    let content = read(text.as_bytes()).unwrap();
    assert_eq!((content.count, content.certificates.len()), (MAX_KEPT + 1, 0));
    let (leaf, _) = own("a.test");
    let content = read(format!("{text}{}", block("CERTIFICATE", &leaf)).as_bytes()).unwrap();
    assert_eq!(
        content.certificates.len(),
        MAX_KEPT + 2,
        "the one that is no authority is not lost among them"
    );
}

#[test]
fn key_stores_open_as_far_as_they_do() {
    use crate::keystore::{Password, jks, pkcs12};
    let (leaf, key) = own("a.test");
    let chain = [rustls_pki_types::CertificateDer::from(leaf)];
    let password = |text: &str| Password::read(text.as_bytes()).unwrap();
    let java = jks::write(&chain, &key, &password("secret"), "a", 0).unwrap();
    let known = pkcs12::write(&chain, &key, &password("changeit"), "a").unwrap();
    let secret = pkcs12::write(&chain, &key, &password("secret"), "a").unwrap();
    for (store, format) in [(&java, Format::Jks), (&known, Format::Pkcs12)] {
        assert_eq!(may_be(&store[..40], store.len() as u64), Some(format));
        let content = read(store).unwrap();
        assert_eq!((content.format, content.count, content.locked), (format, 1, false));
        let spki = content.keys[0].spki_sha256.unwrap();
        assert_eq!(content.certificates[0].facts.spki_sha256, spki);
    }
    let content = read(&secret).unwrap();
    assert_eq!((content.format, content.locked, content.count), (Format::Pkcs12, true, 0));
}

#[test]
fn what_is_none() {
    for bytes in [&b""[..], b"\x30", b"\x30\x00", b"hello", b"-----BEGIN ", b"-----BEGIN CERTIFICATE-----"] {
        assert_eq!(read(bytes), None, "{bytes:?}");
    }
}

fn any_of_ours() -> impl Strategy<Value = Vec<u8>> {
    let (leaf, key) = own("a.test");
    let pem = format!("{}{}", block("CERTIFICATE", &leaf), block("PRIVATE KEY", &key));
    prop_oneof![
        Just(leaf),
        Just(key),
        Just(pem.into_bytes()),
        Just(b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\x01".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

proptest! {
    #[test]
    fn nothing_panics(bytes in any_of_ours(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = bytes;
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = with;
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let _ = read(&bytes);
        let _ = key::spki_sha256(&bytes);
        let _ = key::is_private(&bytes);
        let _ = key::is_encrypted(&bytes);
        let _ = may_be(&bytes, u64::MAX);
    }

    #[test]
    fn what_is_written_is_read(content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
        let written = der::write(der::OCTETS, &[&content]);
        let (value, rest) = der::value(&written).unwrap();
        prop_assert_eq!(value.content, content.as_slice());
        prop_assert!(rest.is_empty());
    }
}
