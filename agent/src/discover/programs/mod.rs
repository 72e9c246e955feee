//! How known programs take new files: which program it is, and its gentle steps. Pure.
//!
//! What is known of each is one entry of [`table`]; [`wrappers`] knows shells
//! and inits. A program is recognised by PID 1 as the kernel shows it, or by
//! what runs behind PID 1 where that is a wrapper; for a container that does
//! not run, by what the engine starts, or by the image's name. A restart is
//! never in a ladder from here: only a label allows it.

mod data;
mod mail;
pub mod table;
mod web;
pub mod wrappers;

use reseal_proto::v1::Usage;

use super::labels::Certificate;
use super::{Command, Container, Ladder, Reload, Signal};
use table::{Program, Takes};
use wrappers::{Wrapper, base_name};

/// Which of a program's files changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The certificate it serves.
    Server,
    /// The certificate it presents to others.
    Client,
    /// The CA certificates it accepts.
    Bundle,
}

/// What a ladder is made from.
pub struct Facts<'a> {
    /// Command line of the program itself, as the kernel shows it.
    words: &'a [String],
    file: File,
    /// Of the file that changes, in the container.
    path: &'a str,
    /// Of its key; empty for a bundle.
    key: &'a str,
    /// The first port that serves it.
    port: Option<u16>,
}

/// What the table says of one consumer.
#[derive(Debug)]
pub struct Known {
    /// Its entry.
    pub program: &'static Program,
    /// Gentle steps; empty where there are none.
    pub ladder: Ladder,
    /// What to run first: a configuration it would refuse is noticed before.
    pub check: Option<Command>,
    /// It looks at the file by itself.
    pub watches: bool,
}

/// What runs in a container.
#[derive(Clone, Debug)]
pub struct Recognised<'a> {
    /// Its entry, if it is known.
    pub program: Option<&'static Program>,
    /// In the host's PID namespace; 0 when it does not run.
    pub pid: i32,
    words: &'a [String],
    /// What stands in front of it as PID 1.
    pub behind: Option<Wrapper>,
}

/// Who gets a container's signals cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hidden {
    /// No program of the table behind it.
    #[error(
        "PID 1 is {wrapper}, which passes no signal on, and no known program runs behind it (seen: {seen}): start the program with exec, or declare an exec"
    )]
    Unknown {
        /// The wrapper.
        wrapper: &'static str,
        /// What was seen.
        seen: String,
    },
    /// Several of them.
    #[error("PID 1 is {wrapper}, and several known programs run behind it ({seen}): declare an exec")]
    Several {
        /// The wrapper.
        wrapper: &'static str,
        /// What was seen.
        seen: String,
    },
}

/// What runs in it. Looks through a wrapper if exactly one known program is behind it,
/// or if it is one that starts a single program.
pub fn recognise(container: &Container) -> Result<Recognised<'_>, Hidden> {
    let first = &container.process;
    let Some(wrapper) = wrappers::of(first) else {
        let words = if first.is_empty() { started(container) } else { first };
        let mut program = by_words(words);
        if first.is_empty() && program.is_none() {
            program = by_image(&container.image);
        }
        return Ok(Recognised { program, pid: container.pid, words, behind: None });
    };
    let known: Vec<_> = container
        .behind
        .iter()
        .filter_map(|process| Some((process, by_words(&process.words)?)))
        // A worker or helper of a program is behind it, and not looked at; but a
        // supervisor may have started the same program twice.
        .collect();
    let found = |pid, words, program| Ok(Recognised { program, pid, words, behind: Some(wrapper) });
    match known.as_slice() {
        [(process, program)] => return found(process.pid, process.words.as_slice(), Some(*program)),
        [] => {}
        several => {
            let seen = several.iter().map(|(_, program)| program.name).collect::<Vec<_>>().join(", ");
            return Err(Hidden::Several { wrapper: wrapper.name, seen });
        }
    }
    let plain: Vec<_> =
        container.behind.iter().filter(|process| wrappers::of(&process.words).is_none()).collect();
    match plain.as_slice() {
        [only] if wrapper.forwards => found(only.pid, only.words.as_slice(), None),
        all => {
            let mut names: Vec<&str> = all.iter().map(|process| name_of(&process.words)).collect();
            names.dedup();
            let seen = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(Hidden::Unknown { wrapper: wrapper.name, seen })
        }
    }
}

/// What the table says of a certificate's consumer, if it knows the program.
pub fn known(container: &Container, declared: &Certificate) -> Option<Known> {
    let file = match declared.usage {
        Usage::Client => File::Client,
        Usage::Server | Usage::Both | Usage::Unspecified => File::Server,
    };
    let port = declared.verify.first().map(|port| port.port);
    entry(container, file, &declared.path, &declared.key, port)
}

/// Likewise of a server certificate that was found at `path` and that nobody declares.
pub fn known_for_file(container: &Container, path: &str) -> Option<Known> {
    entry(container, File::Server, path, "", None)
}

/// Likewise for a bundle's.
pub fn known_for_bundle(container: &Container, path: &str) -> Option<Known> {
    entry(container, File::Bundle, path, "", None)
}

fn entry(container: &Container, file: File, path: &str, key: &str, port: Option<u16>) -> Option<Known> {
    let found = recognise(container).ok()?;
    let program = found.program?;
    let claim = match file {
        File::Server => program.server,
        File::Client => program.client,
        File::Bundle => program.bundle,
    };
    let facts = Facts { words: found.words, file, path, key, port };
    let ladder = match claim.takes {
        Takes::Signal(_) | Takes::Exec => Ladder((program.ladder)(&facts)),
        // What serves it is told all the same: nobody has seen that it does not help.
        Takes::Unknown => Ladder((program.ladder)(&facts)),
        Takes::Watched | Takes::Restart | Takes::Unused => Ladder::default(),
    };
    let watches = claim.takes == Takes::Watched;
    Some(Known { program, ladder, check: (program.check)(&facts), watches })
}

/// The program in words, for the inventory and for findings.
pub fn described(container: &Container) -> String {
    match recognise(container) {
        Ok(Recognised { program: Some(program), behind: Some(wrapper), .. }) => {
            format!("{} behind {}", program.name, wrapper.name)
        }
        Ok(Recognised { program: Some(program), .. }) => program.name.to_owned(),
        Ok(Recognised { words, .. }) => match name_of(words) {
            "" => "unknown".to_owned(),
            name => name.to_owned(),
        },
        Err(Hidden::Unknown { wrapper, .. } | Hidden::Several { wrapper, .. }) => wrapper.to_owned(),
    }
}

/// These options of a command line, each with its value: what checks and reloads must read
/// the configuration that the service reads.
fn options(words: &[String], names: &[&str]) -> Vec<String> {
    words.windows(2).filter(|pair| names.contains(&pair[0].as_str())).flatten().cloned().collect()
}

/// What the engine starts, without the scripts in front.
fn started(container: &Container) -> &[String] {
    let words = &container.command;
    let script = |word: &String| {
        let name = base_name(word);
        name.ends_with(".sh") || name.contains("entrypoint")
    };
    let mut at = words.iter().take_while(|word| script(word)).count();
    // `tini -- nginx`, `dumb-init nginx`.
    if wrappers::of(&words[at..]).is_some_and(|wrapper| wrapper.forwards) {
        at += 1;
        at += words[at..].iter().take_while(|word| word.starts_with('-') || script(word)).count();
    }
    &words[at.min(words.len())..]
}

fn by_words(words: &[String]) -> Option<&'static Program> {
    let name = name_of(words);
    let found = table::ALL.into_iter().find(|program| program.executables.contains(&name))?;
    // "master" is many things; Postfix says where it is from.
    let own = name != "master" || words.first().is_some_and(|word| word.contains("postfix"));
    own.then_some(found)
}

fn by_image(image: &str) -> Option<&'static Program> {
    let repository = image.rsplit('/').next().unwrap_or_default();
    let name = repository.split([':', '@']).next().unwrap_or_default();
    table::ALL.into_iter().find(|program| program.images.contains(&name))
}

/// "nginx: master process nginx -g daemon off;" is one rewritten title.
fn name_of(words: &[String]) -> &str {
    let title = words.first().map_or("", |word| word.split_whitespace().next().unwrap_or_default());
    base_name(title).trim_end_matches(':')
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
