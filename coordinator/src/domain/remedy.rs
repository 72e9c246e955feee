//! What to do next about a target that is not proved: one sentence for each code.
//!
//! The table is closed: a test reads the sources of both programs and fails on a
//! code that has no row, and on a row that `docs/OPERATIONS.md` does not have.
//! `reseal rotation show` and the evidence's residual list say these sentences.

/// A code, and the sentence. `{host}` and `{rotation}` stand for their names.
pub const TABLE: &[(&str, &str)] = &[
    // What no failure is, and is not proved either.
    ("straggler", "bring host {host} or its network back: it catches up by itself"),
    (
        "unserved",
        "start its container: the agent proves it then; without a port, label it reseal.cert.NAME.verify",
    ),
    (
        "overtaken",
        "it was renewed since: rotate its name once more for a proof, and keep both evidence files",
    ),
    (
        "excluded",
        "when host {host} is mended: `reseal rotation retry {rotation} --excluded`, or rotate it by --host",
    ),
    // Asking.
    (
        "unknown-installation",
        "`reseal findings --host {host}`: no container declares it any more, or a finding keeps it from being managed",
    ),
    ("key-failed", "look at the agent's log on {host}: no key could be made or kept; then retry"),
    ("canary-failed", "look at the target of {host} that went first and failed; this one was not attempted"),
    ("order-refused", "the agent on {host} found the order unsound: retry, and report it if it comes again"),
    (
        "no-answer",
        "the coordinator did not answer the request in time: see that it is not overloaded, then retry",
    ),
    ("policy-refused", "`reseal policy check` with the same names, then `reseal policy set`, then retry"),
    (
        "issuer-refused",
        "`reseal authority list`: the issuer will not sign this; mend what the reason names, then retry",
    ),
    ("issuer-waiting", "retry after the time that the reason names"),
    ("bad-csr", "upgrade the agent on {host}: what it asked for cannot be read; then retry"),
    ("asked-twice", "upgrade the agent on {host}: it asked twice for one target; then retry"),
    (
        "not-ordered",
        "upgrade the agent on {host}: it asked for what was not ordered; if it is current, look into it: `reseal host ban {host}`",
    ),
    (
        "not-issued",
        "`reseal authority list`, and look into {host}: it shows a certificate that it did not get for this; then retry",
    ),
    // Validating.
    ("certificate-unreadable", "look at the file on {host} that the reason names; then retry"),
    ("key-mismatch", "retry: certificate and key did not belong together and were not installed"),
    ("key-type-mismatch", "retry: the certificate has another kind of key than {host} asked for"),
    ("chain-order", "look at the authority's certificates, `reseal authority list`; then retry"),
    ("name-mismatch", "compare the label reseal.cert.NAME.names with `reseal policy check`; then retry"),
    ("chain-invalid", "see that the clock of {host} is right, and `reseal authority list`; then retry"),
    ("no-anchor", "restart the agent on {host}: it has no root to judge by, or another fleet's; then retry"),
    // Installing.
    ("missing-directory", "make the directory on {host}, or mend the container's mount; then retry"),
    ("path-escapes", "the path leaves its mount by a link: mend it on {host}; then retry"),
    ("world-writable", "take the write permission of others off that directory on {host}; then retry"),
    (
        "bind-mounted-file",
        "restart the container on {host}, so that it sees the file as it is now (better: mount the directory in place of the single file); then retry",
    ),
    (
        "changed-by-others",
        "somebody else changed the file: look at it on {host}; put it back, or remove the file `installed` that the reason names; then retry",
    ),
    (
        "key-unreadable",
        "set reseal.cert.NAME.owner or .mode so that the user that the reason names can read the key on {host}; then retry",
    ),
    (
        "password-unreadable",
        "put the key store's password into the file that the reason names on {host}; then retry",
    ),
    ("key-store", "look at the agent's log on {host}: the key store could not be made; then retry"),
    ("missing-file", "make the file on {host}, or mend the container's mount; then retry"),
    (
        "torn",
        "make the file on {host} that the reason names writable at once: certificate and key do not belong together; then retry",
    ),
    ("file-too-large", "look at that file on {host}: it is no certificate or key; then retry"),
    ("not-a-file", "put a plain file in place of what is there on {host}; then retry"),
    ("no-space", "free space on {host}; then retry"),
    ("read-only", "remount it writable on {host}; then retry"),
    ("io", "look at the disk of {host}, `dmesg`; then retry"),
    ("key-missing", "look at who removes files beside the certificate on {host}; then retry"),
    ("foreign-link", "somebody else links files there: see who on {host}, remove the link; then retry"),
    // Reloading.
    ("check-refused", "mend the program's configuration (it would not survive a restart either); then retry"),
    (
        "signal-not-caught",
        "declare another reseal.cert.NAME.reload: the program does not catch the signal; then retry",
    ),
    (
        "program-hidden",
        "start the program with exec, or declare an exec in reseal.cert.NAME.reload: a shell or an init stands in front; then retry",
    ),
    (
        "process-foreign",
        "see that the agent on {host} talks to the engine of its own machine: `docker` in its configuration; then retry",
    ),
    (
        "consumer-stopped",
        "see why its container keeps stopping on {host}: `docker logs`, then start it; then retry",
    ),
    (
        "process-invisible",
        "see `reseal-agent doctor` on {host}: the agent cannot see the container's process; then retry",
    ),
    (
        "process-unknown",
        "correct unit or pid-file of that process in the agent's configuration on {host}; then retry",
    ),
    ("exec-failed", "run the command that the reason names in the container, mend it; then retry"),
    ("docker-failed", "see that Docker on {host} answers: `reseal-agent doctor`; then retry"),
    // Verifying.
    ("clock-skew", "set the clock of {host}: within a minute the proof is completed by itself"),
    (
        "clock-unknown",
        "see that the clock of {host} is right, `reseal findings --host {host}`: within a minute the proof is completed by itself",
    ),
    (
        "served-differs",
        "the program reads another file or does not reload certificates: look at its configuration; then retry",
    ),
    ("not-served", "look at the endpoint that the reason names: it shows another certificate; then retry"),
    ("endpoint-unreachable", "see that the service on {host} listens where the label says; then retry"),
    (
        "no-tls",
        "see that TLS is spoken at that address on {host}, and what the service's log says; then retry",
    ),
    (
        "probe-setup",
        "mend the label reseal.cert.NAME.verify, or let the agent enter containers' networks (CAP_SYS_ADMIN), as the reason says; then retry",
    ),
    // Ends that the coordinator gives a target.
    ("no-result", "look at the agent's log on {host}: it is connected and sends no result; then retry"),
    (
        "result-refused",
        "`reseal certs --host {host}`: what it reported could not be recorded, the reason says why; then retry",
    ),
    (
        "not-reported",
        "look at the agent's log on {host}: its result does not speak of this target; then retry",
    ),
    ("not-finished", "look at the agent's log on {host}: it left this target half-way; then retry"),
];

/// What to do about `code` on `host` in `rotation`, one sentence.
pub fn next(code: &str, host: &str, rotation: &str) -> String {
    let known = TABLE.iter().find(|(known, _)| *known == code);
    let sentence = known.map_or(
        "look at the agent's log on {host}, mend what the reason names; then retry",
        |(_, sentence)| sentence,
    );
    let retry = format!("; then `reseal rotation retry {rotation}`");
    let text = sentence.replace("{host}", host).replace("{rotation}", rotation);
    match text.strip_suffix("; then retry") {
        Some(text) => format!("{text}{retry}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn sources(folder: &Path, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What a test makes up is no code.
            if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "remedy.rs" {
                let text = std::fs::read_to_string(&path).unwrap();
                all.push(text.split("#[cfg(test)]").next().unwrap_or_default().to_owned());
            }
        }
    }

    /// Every literal that follows one of these.
    fn literals(text: &str, before: &[&str]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for start in before {
            for rest in text.split(start).skip(1) {
                let word: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                if rest[word.len()..].starts_with('"') && !word.is_empty() {
                    found.insert(word);
                }
            }
        }
        found
    }

    /// The codes that a failure in either program can have.
    fn used() -> BTreeSet<String> {
        let coordinator = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut all = Vec::new();
        sources(&coordinator.join("src"), &mut all);
        sources(&coordinator.join("../agent/src"), &mut all);
        let mut codes = BTreeSet::new();
        for text in all {
            codes.extend(literals(&text, &["code: \"", "failure(\"", "refusal(\""]));
            // The bodies of `fn code(&self)` of the agent's errors; the store's codes are no targets'.
            let errors = text.split("fn code(&self) -> &").skip(1);
            for body in errors.filter(|_| !text.contains("enum StoreError")) {
                let body = body.split("\n    }\n").next().unwrap_or_default();
                codes.extend(literals(body, &["=> \""]));
            }
        }
        // Ids of findings, never of failures.
        codes.remove("path-not-mounted");
        codes.remove("split-pair");
        codes
    }

    #[test]
    fn every_code_that_is_used_has_a_remedy() {
        let known: BTreeSet<String> = TABLE.iter().map(|(code, _)| (*code).to_owned()).collect();
        let used = used();
        assert!(used.len() > 30, "the search finds the codes: {used:?}");
        let missing: Vec<&String> = used.difference(&known).collect();
        assert!(missing.is_empty(), "no remedy for {missing:?}");
        let unused: Vec<&String> = known.difference(&used).collect();
        // The last two are constants in the agent.
        let made_here = ["straggler", "unserved", "overtaken", "clock-skew", "clock-unknown"];
        assert!(unused.iter().all(|code| made_here.contains(&code.as_str())), "nobody says {unused:?}");
    }

    #[test]
    fn the_table_is_in_the_documents() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
        let page = std::fs::read_to_string(path).unwrap();
        for (code, sentence) in TABLE.iter() {
            let sentence = sentence.replace("{host}", "HOST").replace("{rotation}", "ID");
            let row = format!("| `{code}` | {sentence} |");
            assert!(page.contains(&row), "docs/OPERATIONS.md lacks\n{row}");
        }
    }

    #[test]
    fn sentences_name_the_host_and_the_rotation() {
        assert_eq!(next("no-space", "web-1", "r7"), "free space on web-1; then `reseal rotation retry r7`");
        assert!(next("excluded", "web-1", "r7").contains("`reseal rotation retry r7 --excluded`"));
        assert!(next("of a newer agent", "web-1", "r7").contains("log on web-1"));
    }
}
