//! DER: keys in their three forms, and certificates.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reseal_agent::discover::formats::{certificate, der, key};

fuzz_target!(|bytes: &[u8]| {
    if let Some((value, rest)) = der::value(bytes) {
        assert_eq!(value.raw.len() + rest.len(), bytes.len());
    }
    let _ = key::is_private(bytes);
    let _ = key::is_encrypted(bytes);
    let _ = key::spki_sha256(bytes);
    let _ = certificate::read_all(&[bytes.to_vec()]);
});
