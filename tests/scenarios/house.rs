//! The rules of the house that a machine can check: what lies at the top, how long a
//! file is, which module may know which, and that what the documents say is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reseal_tests::image::workspace;
use reseal_tests::process::{command, line};
use reseal_tests::product::Binaries;

/// What may lie at the top of the checkout; files for tools begin with a dot.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "proto",
    "coordinator",
    "agent",
    "deploy",
    "tests",
    "README.md",
    "LICENSE",
    "docs",
    "target",
];

/// No source file is longer.
const LONGEST: usize = 600;

/// Module of the coordinator, what it may use. Components meet only in the store: `grpc` and
/// `engine` never know each other, `domain` knows nothing but the shape of records.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &["store::record"]),
    ("store", &["domain"]),
    ("view", &["domain", "store", "issuance"]),
    ("issuance", &["domain", "store", "fail"]),
    ("engine", &["domain", "store", "issuance", "view", "fail", "metrics"]),
    ("grpc", &["domain", "store", "issuance", "view", "fail", "metrics"]),
    ("metrics", &["domain", "store", "view"]),
    ("monitor", &["metrics", "view", "store"]),
    ("cli", &["app", "config", "domain", "init", "issuance", "restore", "store"]),
    ("init", &["app", "config", "domain", "issuance", "store", "cli"]),
    ("restore", &["domain", "store"]),
    ("config", &[]),
    ("fail", &[]),
    ("simulation", &["app", "domain", "grpc", "init", "issuance", "store", "view"]),
    (
        "app",
        &["config", "engine", "grpc", "issuance", "metrics", "monitor", "restore", "store", "view", "domain"],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

#[test]
fn only_what_belongs_lies_at_the_top() -> Result<()> {
    let mut strangers = Vec::new();
    for entry in fs::read_dir(workspace())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            strangers.push(name);
        }
    }
    ensure!(strangers.is_empty(), "the top has {strangers:?}; what belongs there is {TOP:?}");
    Ok(())
}

#[test]
fn no_source_file_is_too_long() -> Result<()> {
    let mut long = Vec::new();
    for path in sources(&workspace())? {
        let lines = fs::read_to_string(&path)?.lines().count();
        if lines > LONGEST {
            long.push(format!("{} has {lines} lines", path.display()));
        }
    }
    ensure!(long.is_empty(), "split these, {LONGEST} lines are the limit: {long:#?}");
    Ok(())
}

#[test]
fn every_arrow_is_allowed() -> Result<()> {
    let root = workspace().join("coordinator/src");
    let mut forbidden = Vec::new();
    let mut arrows = 0;
    for path in sources(&root)? {
        let below = path.strip_prefix(&root)?;
        let first = below.components().next().context("a file in no directory")?;
        let module = Path::new(first.as_os_str()).with_extension("");
        let module = module.to_string_lossy();
        // A small module that everybody at the edge shares needs a row, too.
        let allowed = ARROWS.iter().find(|(name, _)| *name == module).map(|(_, to)| *to);
        for (number, text) in fs::read_to_string(&path)?.lines().enumerate() {
            let code = text.split("//").next().unwrap_or_default();
            for to in code.split("crate::").skip(1) {
                arrows += 1;
                let at = format!("{}:{}: {}", below.display(), number + 1, text.trim());
                let inside = |of: &str| {
                    let rest = to.strip_prefix(of);
                    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
                };
                let good = inside(&module) || allowed.is_some_and(|all| all.iter().any(|one| inside(one)));
                if !good {
                    forbidden.push(at);
                }
            }
        }
    }
    ensure!(arrows > 100, "only {arrows} arrows were read: does this test still look right?");
    ensure!(forbidden.is_empty(), "arrows the architecture does not have: {forbidden:#?}");
    Ok(())
}

#[test]
fn proto_is_all_that_coordinator_and_agent_share() -> Result<()> {
    for package in ["coordinator", "agent", "proto"] {
        let manifest = fs::read_to_string(workspace().join(package).join("Cargo.toml"))?;
        for other in ["reseal-coordinator", "reseal-agent", "reseal-tests"] {
            let dependency = format!("\n{other}.workspace");
            ensure!(!manifest.contains(&dependency), "{package} depends on {other}");
        }
    }
    Ok(())
}

#[test]
fn sample_configurations_are_good() -> Result<()> {
    let binaries = Binaries::built()?;
    let mut checked = 0;
    for path in files(&workspace().join("deploy"), "toml")? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut check = if name.contains("policy") {
            // Mistakes are found, with exit code 2, before credentials are looked for.
            let mut set = command(&binaries.reseal, &["policy", "set", "sample", "--file"]);
            set.arg(&path).args(["--credentials", "/nonexistent"]);
            set
        } else if name.contains("agent") {
            let mut doctor = command(&binaries.agent, &["scan", "--config"]);
            doctor.arg(&path);
            doctor
        } else {
            let mut serve = command(&binaries.reseal, &["serve", "--check", "--config"]);
            serve.arg(&path);
            serve
        };
        let output = check.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let good = match output.status.code() {
            Some(0) => true,
            Some(1) if name.contains("policy") => !said.contains("mistake"),
            // The machine of the test may have no engine; the file was read before that.
            Some(_) if name.contains("agent") => !said.contains("configuration"),
            _ => false,
        };
        ensure!(good, "{}: {said}", line(&check));
        checked += 1;
    }
    ensure!(checked > 0, "deploy/ has no sample configuration");
    Ok(())
}

#[test]
fn what_the_documents_tell_to_run_exists() -> Result<()> {
    let binaries = Binaries::built()?;
    let mut wrong = Vec::new();
    let mut commands = 0;
    for document in documents()? {
        for text in code_lines(&fs::read_to_string(&document)?) {
            let text = text.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
            let words: Vec<&str> = text.split_whitespace().collect();
            let program = match words.first() {
                Some(&"reseal") => &binaries.reseal,
                Some(&"reseal-agent") => &binaries.agent,
                Some(path) if path.starts_with("deploy/") || path.starts_with("tests/run") => {
                    commands += 1;
                    if !workspace().join(path).is_file() {
                        wrong.push(format!("{}: {path} is not there", document.display()));
                    }
                    continue;
                }
                _ => continue,
            };
            commands += 1;
            if let Err(error) = check_command(program, &words[1..]) {
                wrong.push(format!("{}: `{text}`: {error}", document.display()));
            }
        }
    }
    ensure!(commands > 0, "the documents name no command: does this test still look right?");
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// The subcommand exists and has the flags.
fn check_command(program: &Path, words: &[&str]) -> Result<()> {
    let is_name = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let path: Vec<&str> =
        words.iter().take_while(|word| !word.starts_with('-')).take_while(is_name).copied().collect();
    let output = command(program, &path).arg("--help").output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let help = String::from_utf8_lossy(&output.stdout);
    let end = words.iter().position(|word| ["|", "&&", ">", "#", "\\", ";"].contains(word));
    for word in &words[..end.unwrap_or(words.len())] {
        let flag = word.split('=').next().unwrap_or(word).trim_matches(['[', ']']);
        if flag.starts_with("--") && flag.len() > 2 && !help.contains(flag) {
            bail!("{path:?} has no flag {flag}");
        }
    }
    Ok(())
}

#[test]
fn every_kind_of_finding_is_described() -> Result<()> {
    let text = fs::read_to_string(workspace().join("docs/FINDINGS.md"))?;
    let rows: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let id = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((id, cells.next()?))
        })
        .collect();
    let known: BTreeMap<&str, &str> =
        reseal_proto::findings::ALL.iter().map(|known| (known.id, known.severity)).collect();
    ensure!(rows == known, "docs/FINDINGS.md has {rows:#?}, the program has {known:#?}");
    Ok(())
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    let mut anchors = BTreeMap::new();
    for document in documents()? {
        let text = fs::read_to_string(&document)?;
        let directory = document.parent().context("a document in no directory")?;
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { document.clone() } else { directory.join(file) };
            let mut good = path.exists();
            if good && !anchor.is_empty() {
                let known = anchors.entry(path.clone()).or_insert_with(|| headings(&path));
                good = known.iter().any(|heading| heading == anchor);
            }
            if !good {
                broken.push(format!("{} -> {target}", document.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

/// Anchors of a document's headings.
fn headings(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            words
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Lines between code fences.
fn code_lines(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            inside && !fence
        })
        .collect()
}

fn documents() -> Result<Vec<PathBuf>> {
    let mut all = files(&workspace().join("docs"), "md")?;
    let readme = workspace().join("README.md");
    ensure!(readme.is_file(), "there is no README.md");
    all.push(readme);
    Ok(all)
}

/// Every Rust source of the workspace.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    files(root, "rs")
}

/// Files with an extension below a directory, build output and dotfiles left out.
fn files(root: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
