use std::path::Path;
use std::process::Command;

use super::*;
use crate::chain::tests::{Authority, Leaf};
use crate::key::{KeyType, PrivateKey};
use proptest::prelude::*;

const SECRET: &str = "correct horse";

fn password() -> Password {
    Password::read(b"correct horse\n").unwrap()
}

fn issued(kind: KeyType) -> (Zeroizing<Vec<u8>>, Vec<CertificateDer<'static>>) {
    let key = PrivateKey::generate(kind).unwrap();
    let chain = Authority::new("a").issue(&key, &Leaf::server(&["a.test"]));
    (key.to_pkcs8().unwrap(), chain)
}

type Write = fn(&[CertificateDer<'_>], &[u8]) -> Zeroizing<Vec<u8>>;
type Read = fn(&[u8], Option<&Password>) -> Result<Entries, KeyStoreError>;

const FORMATS: [(&str, Write, Read); 2] = [
    ("pkcs12", |chain, key| pkcs12::write(chain, key, &password(), "site").unwrap(), pkcs12::read),
    ("jks", |chain, key| jks::write(chain, key, &password(), "site", 1_790_000_000).unwrap(), jks::read),
];

#[test]
fn what_is_written_is_read() {
    for (name, write, read) in FORMATS {
        for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
            let (key, chain) = issued(kind);
            let store = write(&chain, &key);
            let entries = read(&store, Some(&password())).unwrap();
            let entry = &entries.keys[0];
            assert_eq!(entry.alias.as_deref(), Some("site"), "{name}");
            assert_eq!(entry.key.as_ref().unwrap().as_slice(), key.as_slice(), "{name}");
            assert_eq!(entry.chain, chain, "{name}");
            assert!(entries.certificates.is_empty() && entries.keys.len() == 1);
            assert_eq!(entries.chain(Some("other")).unwrap(), chain);
            assert_eq!(pkcs12::looks_like(&store), name == "pkcs12");
            assert_eq!(jks::looks_like(&store), name == "jks");
        }
    }
}

#[test]
fn a_wrong_password_opens_nothing() {
    let (key, chain) = issued(KeyType::EcdsaP256);
    let wrong = Password::read(b"battery staple").unwrap();
    for (name, write, read) in FORMATS {
        let store = write(&chain, &key);
        assert_eq!(read(&store, Some(&wrong)).err(), Some(KeyStoreError::Password), "{name}");
    }
    let store = FORMATS[0].1(&chain, &key);
    assert_eq!(pkcs12::read(&store, None).err(), Some(KeyStoreError::PasswordNeeded));
    // The certificates of a JKS are open to everybody.
    let store = FORMATS[1].1(&chain, &key);
    let entries = jks::read(&store, None).unwrap();
    assert!(entries.keys[0].key.is_none());
    assert_eq!(entries.keys[0].chain, chain);
}

#[test]
fn a_password_file_may_end_with_a_newline() {
    let read = |bytes: &[u8]| Password::read(bytes).map(|password| password.0.to_string());
    assert_eq!(read(b"changeit\r\n").unwrap(), "changeit");
    assert_eq!(read(b"two words").unwrap(), "two words");
    assert_eq!(read("p\u{e4}ss\n".as_bytes()).unwrap(), "p\u{e4}ss");
    for bad in [&b""[..], b"\n", b"two\nlines", b"\xff", &[b'x'; MAX_PASSWORD_BYTES + 1]] {
        assert_eq!(read(bad), Err(KeyStoreError::BadPassword));
    }
    assert_eq!(format!("{:?}", password()), "Password");
}

fn openssl(arguments: &[&str], file: &Path) -> String {
    let output = Command::new("openssl").args(arguments).arg("-in").arg(file).output();
    let output =
        output.unwrap_or_else(|error| panic!("openssl does not run ({error}): apt-get install -y openssl"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn openssl_opens_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (key, chain) = issued(KeyType::EcdsaP256);
    let file = dir.path().join("site.p12");
    std::fs::write(&file, pkcs12::write(&chain, &key, &password(), "site").unwrap()).unwrap();
    let pass = format!("pass:{SECRET}");
    let shown = openssl(&["pkcs12", "-info", "-noenc", "-passin", &pass], &file);
    for expected in ["MAC: sha256", "PBES2", "AES-256-CBC", "hmacWithSHA256", "friendlyName: site"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_eq!(crate::pem::read_certificates(shown.as_bytes()).unwrap(), chain);
    assert_eq!(crate::pem::read_key(shown.as_bytes()).unwrap(), key);
}

#[test]
fn what_openssl_writes_is_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let (key, chain) = issued(KeyType::Rsa2048);
    let pem = dir.path().join("all.pem");
    let text = crate::pem::certificates(chain.iter().map(AsRef::as_ref));
    std::fs::write(&pem, text + &crate::pem::private_key(&key)).unwrap();
    let pass = format!("pass:{SECRET}");
    let made = |extra: &[&str]| {
        let out = dir.path().join("out.p12");
        let mut words = vec!["pkcs12", "-export", "-name", "their name", "-passout", &pass, "-out"];
        let path = out.to_str().unwrap().to_owned();
        words.push(&path);
        words.extend(extra);
        openssl(&words, &pem);
        pkcs12::read(&std::fs::read(&out).unwrap(), Some(&password()))
    };
    for extra in [&[][..], &["-keypbe", "AES-128-CBC", "-macalg", "SHA512"], &["-certpbe", "NONE"]] {
        let entries = made(extra).unwrap();
        assert_eq!(entries.keys[0].alias.as_deref(), Some("their name"), "{extra:?}");
        assert_eq!(entries.keys[0].chain, chain, "{extra:?}");
        assert!(entries.keys[0].key.is_some());
    }
    let old = made(&["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES"]).err().unwrap();
    assert!(old.to_string().contains("1.2.840.113549.1.12.1.3"), "{old}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, _, read) in FORMATS {
            let _ = read(&bytes, None);
            let _ = read(&bytes, Some(&password()));
        }
        let mut magic = vec![0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1];
        magic.extend(&bytes);
        let _ = jks::read(&magic, None);
        let _ = der::dotted(&bytes);
    }

    /// Any one changed byte is noticed, or changes nothing that is read.
    #[test]
    fn a_changed_byte_is_noticed(at in any::<proptest::sample::Index>(), mask in 1u8..) {
        // Java's format: made once, cheap to read. (PKCS#12 takes its time by design.)
        let (key, chain) = issued(KeyType::EcdsaP256);
        let mut store = FORMATS[1].1(&chain, &key).to_vec();
        let at = at.index(store.len());
        store[at] ^= mask;
        prop_assert!(jks::read(&store, Some(&password())).is_err());
        let _ = jks::read(&store, None);
    }

    #[test]
    fn a_number_comes_back(number in any::<u32>()) {
        let bytes = der::integer(number);
        prop_assert_eq!(der::Reader::new(&bytes).number("x").unwrap(), number);
    }

    #[test]
    fn a_value_comes_back(length in 0usize..70_000) {
        let content = vec![7; length];
        let bytes = der::value(der::OCTETS, &[&content]);
        let mut reader = der::Reader::new(&bytes);
        prop_assert_eq!(reader.take(der::OCTETS, "x").unwrap().len(), length);
        prop_assert!(reader.is_empty());
    }
}
