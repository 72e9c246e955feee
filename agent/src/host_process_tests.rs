use super::*;
use crate::discover::declared::HostProcess;
use std::str::FromStr as _;

/// A host's files, with a pid file and a unit of the given processes.
fn root(pid_file: &str, members: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let group = root.path().join("sys/fs/cgroup/system.slice/web.service");
    std::fs::create_dir_all(&group).unwrap();
    std::fs::write(group.join("cgroup.procs"), members).unwrap();
    std::fs::create_dir(root.path().join("run")).unwrap();
    write(&root, pid_file);
    root
}

fn write(root: &tempfile::TempDir, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = root.path().join("run/web.pid");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

fn by_file() -> HostProcess {
    HostProcess::PidFile("/run/web.pid".into())
}

fn by_unit() -> HostProcess {
    HostProcess::Unit("web.service".into())
}

/// A shell with a child; both end with this value.
struct Shell(std::process::Child);

impl Shell {
    fn start(script: &str) -> Self {
        Self(std::process::Command::new("sh").args(["-c", script]).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut good: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !good() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_is_found_by_its_pid_file() {
    let shell = Shell::start("sleep 60; true");
    let root = root(&format!("{}\n", shell.pid()), "");
    assert_eq!(find(&by_file(), root.path()).unwrap(), shell.pid());
    for nothing in ["", "x\n", "1\n", "-7\n", "99999999999\n"] {
        write(&root, nothing);
        let error = find(&by_file(), root.path()).unwrap_err();
        assert!(matches!(error, HostError::PidFile { .. }), "{nothing:?}: {error}");
    }
    write(&root, "4194304\n");
    assert!(matches!(find(&by_file(), root.path()), Err(HostError::Gone(_))), "no process has it");
    std::fs::remove_file(root.path().join("run/web.pid")).unwrap();
    assert!(matches!(find(&by_file(), root.path()), Err(HostError::Gone(_))));
}

#[test]
fn a_pid_file_that_others_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = root("2\n", "");
    let path = root.path().join("run/web.pid");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = find(&by_file(), root.path()).unwrap_err();
    assert_eq!(error.code(), "process-unknown");
    assert!(error.to_string().contains("others than root"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/proc/self/loginuid", &path).unwrap();
    assert!(matches!(find(&by_file(), root.path()), Err(HostError::PidFile { .. })), "no link is followed");
}

#[test]
fn the_main_process_of_a_unit_is_the_one_that_started_the_others() {
    let shell = Shell::start("sleep 60; true");
    let children = format!("/proc/{0}/task/{0}/children", shell.pid());
    let mut child = String::new();
    until("the shell starts a child", || {
        child = std::fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        !child.is_empty()
    });
    let first = root("", &format!("{child}\n{}\n", shell.pid()));
    assert_eq!(find(&by_unit(), first.path()).unwrap(), shell.pid());
    let other = Shell::start("sleep 60; true");
    let several = root("", &format!("{}\n{}\n", shell.pid(), other.pid()));
    assert!(matches!(find(&by_unit(), several.path()), Err(HostError::Several { number: 2, .. })));
    let none = root("", "");
    assert!(matches!(find(&by_unit(), none.path()), Err(HostError::Gone(_))));
    let _ = std::process::Command::new("kill").arg(&child).status();
}

#[test]
fn an_instance_of_a_template_lies_in_its_slice() {
    let all = groups("my-web@a.service");
    assert!(all.contains(&PathBuf::from(
        "sys/fs/cgroup/system.slice/system-my\\x2dweb.slice/my-web@a.service/cgroup.procs"
    )));
}

#[test]
fn only_a_signal_that_is_caught_is_sent() {
    let shell = Shell::start("trap 'exit 7' USR1; while :; do sleep 0.05; done");
    let root = root(&format!("{}\n", shell.pid()), "");
    let error = super::signal(&by_file(), Signal::Hup, root.path()).unwrap_err();
    assert_eq!(error.code(), "signal-not-caught", "{error}");
    let mut shell = shell;
    until("the trap is set and the signal arrives", || {
        let _ = super::signal(&by_file(), Signal::Usr1, root.path());
        shell.0.try_wait().unwrap().is_some()
    });
    assert_eq!(shell.0.wait().unwrap().code(), Some(7));
    assert!(matches!(super::signal(&by_file(), Signal::Usr1, root.path()), Err(HostError::Gone(_))));
}

#[tokio::test]
async fn a_command_runs_and_says_what_went_wrong() {
    let command = |text: &str| Command::from_str(text).unwrap();
    run(&command("true")).await.unwrap();
    let failed = run(&command("sh -c 'echo it is broken >&2; exit 3'")).await.unwrap_err();
    assert_eq!(failed.code(), "exec-failed");
    let said = failed.to_string();
    assert!(said.contains("it is broken") && said.contains("3"), "{said}");
    let missing = run(&command("/nonexistent/program")).await.unwrap_err();
    assert!(matches!(missing, HostError::Start { .. }), "{missing}");
    // What it leaves running does not hold it.
    run(&command("sh -c 'sleep 5 & true'")).await.unwrap();
    // Much output neither fills memory nor blocks it.
    let much = run(&command("sh -c 'head -c 3000000 /dev/zero | tr \"\\0\" x; exit 1'")).await.unwrap_err();
    assert!(much.to_string().len() < output::KEPT + 200);
    // Nothing of the agent's own environment gets there.
    run(&command("sh -c 'test -z \"$CARGO_PKG_NAME$HOME\"'")).await.unwrap();
}
