//! The command line as scripts write it.

use clap::{CommandFactory as _, Parser as _};

use super::*;

fn parses(line: &str) -> Cli {
    match Cli::try_parse_from(line.split_whitespace()) {
        Ok(cli) => cli,
        Err(error) => panic!("{line}: {error}"),
    }
}

fn refused(line: &str) -> clap::Error {
    match Cli::try_parse_from(line.split_whitespace()) {
        Ok(cli) => panic!("{line} was taken as {:?}", cli.command),
        Err(error) => error,
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

/// The names of `1-product.md`, "The surface at a glance", and of the contract.
#[test]
fn the_binding_names_parse() {
    for line in [
        "reseal init --config c.toml --fleet demo --admin-out a.json",
        "reseal init --config c.toml --fleet demo --admin alice --admin-out a.json --root-key-out r.key",
        "reseal serve --config c.toml",
        "reseal serve --config c.toml --check",
        "reseal status --output json",
        "reseal operator add bob --role viewer --out bob.json",
        "reseal operator list",
        "reseal operator remove bob",
        "reseal policy list",
        "reseal policy show default",
        "reseal policy set web --file web.toml",
        "reseal policy set web --host web-* --host-label env=prod --name *.example.test --address 10.0.0.0/8 --key-type ecdsa-p256 --usage server --lifetime 720h --wildcards",
        "reseal policy remove web",
        "reseal policy check --host web-1 --name www.example.test --name 10.0.0.1 --key-type rsa-2048 --usage both",
        "reseal host invite web-1 --label env=prod --label region=eu",
        "reseal host list --label env=prod",
        "reseal host show web-1",
        "reseal host ban web-1 --reason stolen",
        "reseal host remove web-1",
        "reseal certs",
        "reseal certs --expires-before 30d --output csv",
        "reseal certs list --compromised-issuer builtin/a",
        "reseal certs show abcdef0123",
        "reseal findings --host web-1",
        "reseal plan --compromised-issuer builtin/a",
        "reseal plan --host web-1 --host-label env=prod --name *.test --serial 01 --serial-file - --key-type rsa-2048 --expires-before 2027-01-31",
        "reseal rotate --compromised-issuer a --reason r --to-issuer builtin/b --waves 1,10%,100% --max-failures 2% --on-failure hold --deadline 12h --yes --detach",
        "reseal rotation list",
        "reseal rotation show r1",
        "reseal rotation watch r1 --output json",
        "reseal rotation pause r1",
        "reseal rotation resume r1",
        "reseal rotation abort r1 --reason mistake",
        "reseal rotation retry r1",
        "reseal rotation evidence r1 --file r1.json",
        "reseal rotation evidence r1 --out -",
        "reseal authority list",
        "reseal authority prepare c --root-key root.key --kek kek",
        "reseal authority activate b",
        "reseal authority taint a --reason leaked",
        "reseal trust list",
        "reseal trust show managed-root --pem",
        "reseal audit list --after 10 --limit 5",
        "reseal store export --file f",
        "reseal store export --config c.toml --file f",
        "reseal store import --config c.toml --file f",
        "reseal completions bash",
        "reseal completions zsh",
        "reseal completions fish",
    ] {
        parses(line);
    }
    let anchor = "ab".repeat(32);
    parses(&format!("reseal evidence verify r1.json --anchor {anchor}"));
}

#[test]
fn global_flags_stand_anywhere() {
    assert_eq!(parses("reseal --output json status").output, Format::Json);
    assert_eq!(parses("reseal host list -o csv").output, Format::Csv);
    let cli = parses("reseal status --credentials me.json");
    assert_eq!(cli.credentials, Some(PathBuf::from("me.json")));
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "reseal",
        "reseal rotat",
        "reseal rotate --compromised-issuer a",
        "reseal rotate --compromised-issuer a --reason r --on-failure explode",
        "reseal rotate --compromised-issuer a --reason r --deadline soon",
        "reseal operator add bob --role king --out f",
        "reseal host invite web-1 --label novalue",
        "reseal host ban web-1",
        "reseal policy set web --file f --name x",
        "reseal policy check --host web-1",
        "reseal policy check --host web-1 --name a --usage serve",
        "reseal rotation abort r1",
        "reseal evidence verify f --anchor abcd",
        "reseal evidence verify f",
        "reseal status --output yaml",
        "reseal certs --host a show abcdef01",
        "reseal authority prepare c --root-key r",
        "reseal completions tcsh",
    ] {
        let error = refused(line);
        // `reseal` alone shows its help, and that is a usage error too.
        assert_eq!(error.exit_code(), exit::Exit::Usage as i32, "{line}");
    }
}

#[test]
fn every_command_says_what_it_does() {
    fn walk(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 15, "{path} has no help worth reading: {about:?}");
            for arg in sub.get_arguments() {
                assert!(arg.get_help().is_some(), "{path} --{} has no help", arg.get_id());
            }
            walk(sub, &path);
        }
    }
    walk(&Cli::command(), "reseal");
}

#[test]
fn help_has_the_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains(exit::TABLE), "{help}");
}

#[test]
fn completions_know_the_commands() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "reseal", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("rotate") && script.contains("compromised-issuer"), "{shell}");
    }
}
