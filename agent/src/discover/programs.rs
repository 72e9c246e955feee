//! How known programs take a new certificate: one table, one place. Pure.
//!
//! A program is recognised by PID 1 as the kernel shows it, else by what the
//! engine starts, else by the image's name; a shell or an init in front is not
//! seen through, it is named. Sources: nginx "Controlling nginx" (HUP: new
//! configuration, new workers, old ones finish); HAProxy management guide,
//! section 4 (USR2 to the master of `-W`/`-Ws` reloads; without a master there
//! is nothing to signal).

use super::{Command, Container, Reload, Signal};

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// How it reloads.
    pub reload: Reload,
    /// What to run first: a configuration it would refuse is noticed before.
    pub check: Option<Command>,
}

/// The entry for this container's program, if there is one.
pub fn known(container: &Container) -> Option<Known> {
    match program(container)?.as_str() {
        "nginx" => {
            Some(Known { reload: Reload::Signal(Signal::Hup), check: Some(nginx_check(&container.command)) })
        }
        "haproxy" => {
            let words = haproxy_words(container);
            let master = words.iter().any(|word| matches!(word.as_str(), "-W" | "-Ws"));
            master.then(|| Known { reload: Reload::Signal(Signal::Usr2), check: haproxy_check(words) })
        }
        _ => None,
    }
}

/// PID 1 in words for the `reload-missing` finding.
pub fn described(container: &Container) -> String {
    program(container).unwrap_or_else(|| "unknown".to_owned())
}

fn program(container: &Container) -> Option<String> {
    if let Some(title) = container.process.first() {
        // "nginx: master process nginx -g daemon off;" is one rewritten title.
        let first = title.split_whitespace().next().unwrap_or_default();
        return Some(base_name(first.trim_end_matches(':')).to_owned());
    }
    let started = container
        .command
        .iter()
        .map(|word| base_name(word))
        .find(|word| !word.ends_with(".sh") && !word.contains("entrypoint"));
    if let Some(name @ ("nginx" | "haproxy")) = started {
        return Some(name.to_owned());
    }
    let repository = container.image.rsplit('/').next().unwrap_or_default();
    let image = repository.split([':', '@']).next().unwrap_or_default();
    if matches!(image, "nginx" | "haproxy") {
        return Some(image.to_owned());
    }
    started.map(str::to_owned)
}

fn nginx_check(command: &[String]) -> Command {
    let mut words = vec!["nginx".to_owned(), "-t".to_owned()];
    // The check must read the configuration that the service reads.
    for pair in command.windows(2) {
        if matches!(pair[0].as_str(), "-c" | "-p") {
            words.extend_from_slice(pair);
        }
    }
    Command(words)
}

fn haproxy_words(container: &Container) -> &[String] {
    if container.process.is_empty() { &container.command } else { &container.process }
}

fn haproxy_check(words: &[String]) -> Option<Command> {
    let mut check = vec!["haproxy".to_owned(), "-c".to_owned(), "-q".to_owned()];
    let plain = check.len();
    for pair in words.windows(2) {
        if pair[0] == "-f" {
            check.extend_from_slice(pair);
        }
    }
    (check.len() > plain).then_some(Command(check))
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn nginx_by_title_by_command_and_by_image() {
        let by_title = Container {
            process: vec!["nginx: master process nginx -g daemon off;".into()],
            command: words("nginx -c /etc/x.conf -g daemon"),
            ..Container::default()
        };
        let found = known(&by_title).unwrap();
        assert_eq!(found.reload, Reload::Signal(Signal::Hup));
        assert_eq!(found.check.unwrap().0, words("nginx -t -c /etc/x.conf"));
        for (command, image) in [
            ("/usr/sbin/nginx -g x", "x"),
            ("/docker-entrypoint.sh nginx -g x", "x"),
            ("/start", "docker.io/library/nginx:1.25"),
        ] {
            let container =
                Container { command: words(command), image: image.into(), ..Container::default() };
            assert!(known(&container).is_some(), "{command} {image}");
        }
    }

    #[test]
    fn haproxy_needs_its_master() {
        let mut container =
            Container { process: words("haproxy -Ws -f /etc/haproxy/haproxy.cfg"), ..Container::default() };
        let found = known(&container).unwrap();
        assert_eq!(found.reload, Reload::Signal(Signal::Usr2));
        assert_eq!(found.check.unwrap().0, words("haproxy -c -q -f /etc/haproxy/haproxy.cfg"));
        container.process = words("haproxy -db -f /etc/haproxy/haproxy.cfg");
        assert_eq!(known(&container), None);
    }

    #[test]
    fn a_shell_in_front_hides_the_program_and_is_named() {
        let container =
            Container { process: words("/bin/sh -c nginx"), image: "nginx".into(), ..Container::default() };
        assert_eq!(known(&container), None);
        assert_eq!(described(&container), "sh");
    }
}
