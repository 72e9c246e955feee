//! Shells and inits that stand in front of a program as PID 1. Pure.
//!
//! A shell waits for its child and passes no signal on; a small init passes on
//! what it gets; a supervisor has several children. None of them is the
//! program, and a signal to one of them reloads nothing.

/// What stands in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapper {
    /// Its usual name.
    pub name: &'static str,
    /// Does it start one program and pass signals on to it?
    pub forwards: bool,
}

/// Base name, forwards. Sources: the README of tini, of dumb-init and of catatonit;
/// `docker run --init` is tini under another name; s6-svscan(8), runsvdir(8) and
/// supervisord keep signals for themselves; POSIX shells do without `exec`.
const WRAPPERS: [(&str, bool); 18] = [
    ("sh", false),
    ("ash", false),
    ("bash", false),
    ("busybox", false),
    ("dash", false),
    ("ksh", false),
    ("zsh", false),
    ("tini", true),
    ("tini-static", true),
    ("docker-init", true),
    ("dumb-init", true),
    ("catatonit", true),
    ("s6-svscan", false),
    ("s6-supervise", false),
    ("runsvdir", false),
    ("runsv", false),
    ("runit", false),
    ("supervisord", false),
];

/// The wrapper that this command line is, if it is one.
pub fn of(words: &[String]) -> Option<Wrapper> {
    let first = base_name(words.first()?.split_whitespace().next()?);
    // supervisord is a Python script.
    let name = match (first.starts_with("python"), words.get(1)) {
        (true, Some(script)) => base_name(script),
        _ => first,
    };
    // A login shell's name begins with a dash.
    let name = name.trim_start_matches('-');
    // `busybox httpd` is no shell.
    if name == "busybox" && words.get(1).is_some_and(|applet| !matches!(applet.as_str(), "sh" | "ash")) {
        return None;
    }
    let found = WRAPPERS.iter().find(|(known, _)| *known == name);
    // Docker's own is /sbin/docker-init, seen in the container as /dev/init in old engines.
    found.map(|(name, forwards)| Wrapper { name, forwards: *forwards })
}

/// The last part of a path.
pub(super) fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_named() {
        let named = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            of(&words).map(|wrapper| (wrapper.name, wrapper.forwards))
        };
        assert_eq!(named("/bin/sh -c nginx"), Some(("sh", false)));
        assert_eq!(named("-bash"), Some(("bash", false)));
        assert_eq!(named("/usr/bin/python3 /usr/bin/supervisord -n"), Some(("supervisord", false)));
        assert_eq!(named("/sbin/docker-init -- nginx"), Some(("docker-init", true)));
        assert_eq!(named("tini -- haproxy -W"), Some(("tini", true)));
        assert_eq!(named("busybox sh /start"), Some(("busybox", false)));
        assert_eq!(named("busybox httpd -f"), None);
        assert_eq!(named("nginx: master process nginx"), None);
        assert_eq!(named("/usr/bin/python3 /app.py"), None);
        assert_eq!(of(&[]), None);
    }
}
