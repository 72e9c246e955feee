//! How the demo looks: calm lines, colour only on a terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use crate::fleet::Fleet;
use crate::services::Endpoint;

/// The user's terminal, or a file.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    last: Instant,
}

/// How a fact looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Warn,
    Bad,
    Plain,
}

impl Screen {
    pub(super) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, last: Instant::now() }
    }

    pub(super) fn title(&self, text: &str) {
        self.print(&format!("\n{}\n", self.paint("1", text)));
    }

    pub(super) fn heading(&self, text: &str) {
        self.print(&format!("\n{}", self.paint("1", text)));
    }

    /// A step that is done, with the seconds it took.
    pub(super) fn done(&mut self, text: &str) {
        let took = format!("{:5.1} s", self.last.elapsed().as_secs_f32());
        self.last = Instant::now();
        let tick = self.paint("32", "\u{2713}");
        self.print(&format!("  {tick} {}  {text}", self.paint("2", &took)));
    }

    /// A command, before its own output.
    pub(super) fn command(&self, text: &str) {
        self.print(&format!("\n{} {}", self.paint("2", "$"), self.paint("36", text)));
    }

    pub(super) fn fact(&self, name: &str, tone: Tone, value: &str, rest: &str) {
        let colour = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Plain => "1",
        };
        let rest = if rest.is_empty() { String::new() } else { format!("  {rest}") };
        self.print(&format!("  {name:<16}{}{rest}", self.paint(colour, value)));
    }

    /// A line below a fact.
    pub(super) fn detail(&self, text: &str) {
        self.print(&format!("  {:<16}{text}", ""));
    }

    /// What can be done with a fleet that was kept.
    pub(super) fn try_next(&self, environment: &Path, site: &Endpoint, id: &str, fleet: &Fleet) {
        self.heading("The fleet stays up. As root, in this directory:");
        let first = fleet.hosts.first();
        let socket = first.map(|host| host.engine.socket().display().to_string());
        let lines = [
            format!(". {}", environment.display()),
            "reseal status".to_owned(),
            "reseal certs".to_owned(),
            format!("reseal rotation show {id}"),
            "reseal plan --key-type rsa-2048".to_owned(),
            "reseal rotate --key-type rsa-2048 --reason 'leaving RSA' --yes".to_owned(),
            "reseal audit list".to_owned(),
            format!(
                "openssl s_client -connect {} -servername {} -CAfile $RESEAL_DEMO_ROOT </dev/null",
                site.address, site.sni
            ),
            format!("docker -H unix://{} ps", socket.unwrap_or_default()),
        ];
        for line in lines {
            self.print(&format!("  {}", self.paint("36", &line)));
        }
        self.heading("When you are done:");
        self.print(&format!("  {}\n", self.paint("36", "deploy/demo clean")));
    }

    pub(super) fn print(&self, text: &str) {
        // Nobody is left to tell when standard output is closed.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
