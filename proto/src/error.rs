//! An error with everything below it, on one line, for the one place where it is shown.

use std::error::Error;

/// "what failed: because of this: because of that". `Display` of an error never
/// repeats its source, so this is the whole story, once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
