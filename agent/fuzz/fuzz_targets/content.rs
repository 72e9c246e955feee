//! A file beneath a mount, of any format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reseal_agent::discover::formats;

fuzz_target!(|bytes: &[u8]| {
    let head = &bytes[..bytes.len().min(formats::HEAD)];
    let _ = formats::may_be(head, bytes.len() as u64);
    if let Some(content) = formats::read(bytes) {
        assert!(content.certificates.len() <= content.count);
        assert!(formats::may_be(bytes, bytes.len() as u64).is_some());
    }
});
