//! How a consumer is made to read its files again: signals, commands, ladders of both.
//!
//! Pure: reads what labels say and prints it back. What a known program needs is in
//! [`super::programs`], the doing in [`crate::reload`].

use std::fmt;
use std::str::FromStr;

/// More steps are a mistake.
const MAX_STEPS: usize = 4;

/// A command for `docker exec`: no shell is involved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(pub Vec<String>);

impl Command {
    /// From words that the agent itself puts together.
    pub fn of<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Self(words.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// One way to make a consumer read its files again; gentler ones are smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// A signal to the program.
    Signal(Signal),
    /// A command inside the container.
    Exec(Command),
    /// The container is restarted: the last resort, only by label.
    Restart,
}

impl Reload {
    /// Does the program go on serving meanwhile?
    pub fn is_gentle(&self) -> bool {
        match self {
            Self::Signal(_) | Self::Exec(_) => true,
            Self::Restart => false,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Signal(_) => 0,
            Self::Exec(_) => 1,
            Self::Restart => 2,
        }
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "signal {}", signal.name()),
            Self::Exec(command) => write!(f, "exec {command}"),
            Self::Restart => f.write_str("restart"),
        }
    }
}

impl FromStr for Reload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "restart" => Ok(Self::Restart),
            Some(("signal", name)) => Signal::from_str(name).map(Self::Signal),
            Some(("exec", command)) => Command::from_str(command).map(Self::Exec),
            _ => Err(
                "must be none, or signal:NAME, exec:COMMAND, restart, or several of these in that order with commas between; a comma inside a command goes in quotes"
                    .into(),
            ),
        }
    }
}

/// What is tried, gentlest first; the next step only where the one before did not help.
/// Empty: the program sees the change by itself, or nothing is known that helps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ladder(pub Vec<Reload>);

impl Ladder {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is a restart all there is?
    pub fn only_restarts(&self) -> bool {
        !self.is_empty() && !self.0.iter().any(Reload::is_gentle)
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (at, step) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{step}")?;
        }
        Ok(())
    }
}

impl FromStr for Ladder {
    type Err = String;

    /// `none`, or steps separated by commas, gentler ones first, each once.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let steps: Vec<Reload> =
            split(text)?.into_iter().map(|step| step.trim().parse()).collect::<Result<_, String>>()?;
        if steps.len() > MAX_STEPS {
            return Err(format!("at most {MAX_STEPS} steps"));
        }
        for (at, step) in steps.iter().enumerate() {
            if steps[..at].contains(step) {
                return Err(format!("{step} is there twice"));
            }
            if at > 0 && step.rank() < steps[at - 1].rank() {
                return Err(format!("{step} must come before {}: gentler steps first", steps[at - 1]));
            }
        }
        Ok(Self(steps))
    }
}

/// At commas that are not inside quotes.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            None => {}
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// A signal that programs take for "read your configuration again".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// 1
    Hup,
    /// 10
    Usr1,
    /// 12
    Usr2,
    /// 28
    Winch,
}

impl Signal {
    const ALL: [Self; 4] = [Self::Hup, Self::Usr1, Self::Usr2, Self::Winch];

    /// Without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Winch => "WINCH",
        }
    }

    /// As the kernel takes it.
    pub fn of_process(self) -> rustix::process::Signal {
        match self {
            Self::Hup => rustix::process::Signal::HUP,
            Self::Usr1 => rustix::process::Signal::USR1,
            Self::Usr2 => rustix::process::Signal::USR2,
            Self::Winch => rustix::process::Signal::WINCH,
        }
    }

    /// Its number on Linux, all architectures that Docker runs on.
    pub fn number(self) -> u32 {
        match self {
            Self::Hup => 1,
            Self::Usr1 => 10,
            Self::Usr2 => 12,
            Self::Winch => 28,
        }
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        Self::ALL
            .into_iter()
            .find(|signal| signal.name() == name)
            .ok_or_else(|| "the signal must be HUP, USR1, USR2 or WINCH".into())
    }
}

impl FromStr for Command {
    type Err = String;

    /// Splits on white space; '...' and "..." keep it together, nothing else is special.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > 1024 || text.contains('\0') {
            return Err("the command must be at most 1024 bytes without NUL".into());
        }
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut quote: Option<char> = None;
        for c in text.chars() {
            match quote {
                Some(open) if c == open => quote = None,
                Some(_) => word.get_or_insert_default().push(c),
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                None if c.is_whitespace() => words.extend(word.take()),
                None => word.get_or_insert_default().push(c),
            }
        }
        if quote.is_some() {
            return Err("a quote is not closed".into());
        }
        words.extend(word);
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Self(words)),
            _ => Err("the command is empty".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ladder(text: &str) -> Result<String, String> {
        text.parse::<Ladder>().map(|ladder| ladder.to_string())
    }

    #[test]
    fn ladders_are_read_strictly() {
        for (text, told) in [
            ("none", "none"),
            ("signal:HUP", "signal HUP"),
            ("signal:SIGUSR2,restart", "signal USR2, restart"),
            ("signal:HUP, exec:nginx -s reload, restart", "signal HUP, exec nginx -s reload, restart"),
            ("exec:sh -c 'a,b'", "exec sh -c a,b"),
            ("restart", "restart"),
        ] {
            assert_eq!(ladder(text).unwrap(), told, "{text}");
        }
        for (text, why) in [
            ("", "must be none"),
            ("none,restart", "must be none"),
            ("signal:TERM", "HUP, USR1, USR2 or WINCH"),
            ("restart,signal:HUP", "gentler steps first"),
            ("exec:a,signal:HUP", "gentler steps first"),
            ("signal:HUP,signal:HUP", "twice"),
            ("exec:redis-cli SET a,b", "in quotes"),
            ("exec:a 'b", "not closed"),
            ("exec:", "empty"),
            ("signal:HUP,", "must be none"),
            ("signal:HUP,signal:USR1,signal:USR2,exec:a,restart", "at most 4"),
        ] {
            let said = ladder(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = text.parse::<Ladder>();
        }

        #[test]
        fn what_is_read_is_sorted_and_bounded(
            steps in proptest::collection::vec(
                prop_oneof![Just("signal:HUP"), Just("signal:USR1"), Just("exec:a b"), Just("exec:'x,y'"), Just("restart")],
                0..7,
            )
        ) {
            if let Ok(Ladder(steps)) = steps.join(",").parse::<Ladder>() {
                prop_assert!(steps.len() <= MAX_STEPS);
                prop_assert!(steps.is_sorted_by_key(Reload::rank));
                prop_assert!(steps.iter().filter(|step| !step.is_gentle()).count() <= 1);
            }
        }
    }
}
