//! PEM blocks, and the keys and certificates in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reseal_agent::discover::formats::{key, pem};

fuzz_target!(|bytes: &[u8]| {
    for block in pem::blocks(bytes) {
        let _ = key::spki_sha256(&block.bytes);
    }
});
