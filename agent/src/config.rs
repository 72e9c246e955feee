//! The agent's settings: a TOML file, all of it optional.
//!
//! Unknown keys are refused and every mistake is reported at once. What the
//! file declares (`[[certificate]]`, `[[trust]]`) is not judged here: one mistake
//! there must not take the whole host down ([`crate::discover::declared`]). The
//! file holds no secret: the join token comes by argument, environment or
//! standard input, the identity lives in the state directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reseal_proto::telemetry::{LogFormat, Settings};
use serde::Deserialize;

use crate::discover;

/// Where the state is kept unless the settings say otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/reseal-agent";
/// Read when no file is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/reseal/agent.toml";
const DEFAULT_DOCKER: &str = "unix:///var/run/docker.sock";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a key that does not exist.
    #[error("configuration {path} is not usable: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        message: String,
    },
    /// Values out of their range, all of them.
    #[error("configuration {path} has mistakes: {}", .mistakes.join("; "))]
    Values {
        /// The file.
        path: PathBuf,
        /// One line each.
        mistakes: Vec<String>,
    },
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read from; none: nothing but defaults.
    pub file: Option<PathBuf>,
    /// Identity, journal and unsent results; mode 0700.
    pub state_dir: PathBuf,
    /// `unix:///path` or `tcp://host:port` of the Docker Engine or a socket proxy.
    pub docker: String,
    /// Where the host's files are seen; "/" when the agent runs on the host itself.
    pub host_root: PathBuf,
    /// A full scan at least this often.
    pub scan_interval: Duration,
    /// How long a new certificate may take to be served.
    pub verify_timeout: Duration,
    /// How signals are sent.
    pub signals: Signals,
    /// Address of the metrics page; none: off.
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// The search for certificates that nobody declared.
    pub discovery: discover::settings::Settings,
    /// Logs and traces.
    pub telemetry: Settings,
}

/// How signals are sent to PID 1 of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signals {
    /// To the process itself (pidfd_send_signal(2)); needs the host's PID namespace and CAP_KILL.
    #[default]
    Process,
    /// Through the Docker Engine. It takes a signal for a wish to stop: a container
    /// without a stop signal of its own loses its restart policy by it.
    Engine,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    // Read anew at each scan, by `discover::declared`.
    #[serde(rename = "adopt")]
    _adopt: Option<toml::Value>,
    #[serde(rename = "certificate")]
    _certificates: Option<toml::Value>,
    #[serde(rename = "trust")]
    _trusts: Option<toml::Value>,
    state_dir: Option<PathBuf>,
    docker: Option<String>,
    host_root: Option<PathBuf>,
    scan_interval_seconds: Option<u64>,
    verify_timeout_seconds: Option<u64>,
    #[serde(default)]
    signals: Signals,
    metrics_listen: Option<String>,
    #[serde(default)]
    discovery: discover::settings::Raw,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTelemetry {
    log_format: Option<String>,
    log_level: Option<String>,
    otlp_endpoint: Option<String>,
    sample_ratio: Option<f64>,
}

impl Config {
    /// Reads `file`, or the default file when there is one, or takes the
    /// defaults. `state_dir` is what the command line says and wins.
    pub fn load(file: Option<&Path>, state_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let (path, raw) = match file {
            Some(path) => (path.to_owned(), read(path)?),
            None => (PathBuf::from("(defaults)"), Raw::default()),
        };
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let config = raw.validate(path, state_dir, &environment)?;
        Ok(Self { file: file.map(Path::to_owned), ..config })
    }

    /// The path at which the agent sees a path of the host.
    pub fn on_host(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").unwrap_or(path);
        self.host_root.join(below)
    }
}

fn read(path: &Path) -> Result<Raw, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Is this text of a configuration, as far as it is read anew, one that can be used?
pub fn check(path: &Path, text: &str) -> Result<(), ConfigError> {
    parse(path, text).map(drop)
}

fn parse(path: &Path, text: &str) -> Result<Raw, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

impl Raw {
    fn validate(
        self,
        path: PathBuf,
        state_dir: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let mut mistakes = Vec::new();
        let docker =
            self.docker.or_else(|| environment("DOCKER_HOST")).unwrap_or_else(|| DEFAULT_DOCKER.to_owned());
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| docker.starts_with(scheme)) {
            mistakes.push(format!("docker {docker:?} must begin with unix://, tcp:// or http://"));
        }
        let host_root = self.host_root.unwrap_or_else(|| "/".into());
        if !host_root.is_absolute() {
            mistakes.push(format!("host_root {host_root:?} must be absolute"));
        }
        let scan_interval = self.scan_interval_seconds.unwrap_or(300);
        if !(5..=86_400).contains(&scan_interval) {
            mistakes.push(format!("scan_interval_seconds {scan_interval} must be 5 to 86400"));
        }
        let verify_timeout = self.verify_timeout_seconds.unwrap_or(30);
        if !(1..=600).contains(&verify_timeout) {
            mistakes.push(format!("verify_timeout_seconds {verify_timeout} must be 1 to 600"));
        }
        let metrics_listen = match self.metrics_listen.as_deref() {
            None | Some("") => None,
            Some(text) => text
                .parse()
                .map_err(|_| mistakes.push(format!("metrics_listen {text:?} is not ADDRESS:PORT")))
                .ok(),
        };
        let format = match self.telemetry.log_format.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                mistakes.push(format!("telemetry.log_format {other:?} must be text or json"));
                LogFormat::Text
            }
        };
        let sample_ratio = self.telemetry.sample_ratio.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sample_ratio) {
            mistakes.push(format!("telemetry.sample_ratio {sample_ratio} must be 0.0 to 1.0"));
        }
        let discovery = self.discovery.validate(&mut mistakes);
        if !mistakes.is_empty() {
            return Err(ConfigError::Values { path, mistakes });
        }
        Ok(Config {
            file: None,
            state_dir: state_dir
                .map(Path::to_owned)
                .or(self.state_dir)
                .unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            docker,
            host_root,
            scan_interval: Duration::from_secs(scan_interval),
            verify_timeout: Duration::from_secs(verify_timeout),
            signals: self.signals,
            metrics_listen,
            discovery,
            telemetry: Settings {
                service: "reseal-agent",
                level: self.telemetry.log_level.unwrap_or_else(|| "info".into()),
                format,
                otlp_endpoint: self
                    .telemetry
                    .otlp_endpoint
                    .or_else(|| environment("OTEL_EXPORTER_OTLP_ENDPOINT"))
                    .filter(|endpoint| !endpoint.is_empty()),
                sample_ratio,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, ConfigError> {
        parse(Path::new("t.toml"), text)?.validate("t.toml".into(), None, &|_| None)
    }

    #[test]
    fn everything_has_a_default() {
        let config = config("").unwrap();
        assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!(config.docker, DEFAULT_DOCKER);
        assert_eq!(config.scan_interval, Duration::from_secs(300));
        assert_eq!(config.on_host(Path::new("/a/b")), Path::new("/a/b"));
    }

    #[test]
    fn a_mistyped_key_is_refused() {
        let error = config("state_dri = '/x'").unwrap_err().to_string();
        assert!(error.contains("state_dri"), "{error}");
    }

    #[test]
    fn a_bad_declaration_stops_nothing() {
        assert!(config("adopt = 'perhaps'\ncertificate = 3\n[[trust]]\nnonsense = []\n").is_ok());
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let text = "docker = 'x'\nhost_root = 'y'\nscan_interval_seconds = 0\n[telemetry]\nlog_format = 'z'\nsample_ratio = 2.0";
        let ConfigError::Values { mistakes, .. } = config(text).unwrap_err() else {
            panic!("expected the list of mistakes");
        };
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    }

    #[test]
    fn the_environment_fills_in_and_the_file_wins() {
        let environment = |name: &str| match name {
            "DOCKER_HOST" => Some("unix:///run/d.sock".to_owned()),
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://c:4317".to_owned()),
            _ => None,
        };
        let from = |text: &str| {
            parse(Path::new("t"), text).unwrap().validate("t".into(), None, &environment).unwrap()
        };
        assert_eq!(from("").docker, "unix:///run/d.sock");
        assert_eq!(from("").telemetry.otlp_endpoint.as_deref(), Some("http://c:4317"));
        assert_eq!(from("docker = 'tcp://a:1'").docker, "tcp://a:1");
    }

    #[test]
    fn the_host_root_goes_in_front() {
        let config = config("host_root = '/host'").unwrap();
        assert_eq!(config.on_host(Path::new("/srv/tls")), Path::new("/host/srv/tls"));
    }
}
