//! The end of what a command writes: the last lines say what went wrong. Pure.

use reseal_proto::facts::printable;

/// Bytes that are kept.
pub const KEPT: usize = 2048;

/// The last bytes of an output, as they come.
#[derive(Debug, Default)]
pub struct Output(Vec<u8>);

impl Output {
    /// Takes what comes next; what no longer fits goes at the front.
    pub fn take(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    /// On one line, printable.
    pub fn line(&self) -> String {
        printable(&String::from_utf8_lossy(&self.0).trim().replace('\n', "; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_on_one_line() {
        let mut output = Output::default();
        output.take(&vec![b'x'; KEPT]);
        output.take(b"\nfirst\nlast\x1b\n");
        let line = output.line();
        assert!(line.starts_with('x') && line.ends_with("x; first; last\u{fffd}"), "{line}");
        assert!(line.len() <= KEPT + 4);
        assert_eq!(Output::default().line(), "");
    }
}
