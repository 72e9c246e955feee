//! Labels of a container: lines of "key=value".
#![no_main]

use libfuzzer_sys::fuzz_target;
use reseal_agent::discover::labels;

fuzz_target!(|text: &str| {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let declared = labels::parse(pairs);
    for problem in &declared.problems {
        assert!(!problem.message.chars().any(char::is_control), "{:?}", problem.message);
    }
    for certificate in &declared.certificates {
        assert!(certificate.path.starts_with('/') && !certificate.path.contains("/../"));
    }
});
