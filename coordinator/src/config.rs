//! The coordinator's configuration: a TOML file, checked whole.
//!
//! Unknown keys are mistakes, every optional knob has a default, secrets are in
//! files that it names. All mistakes are reported at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reseal_proto::telemetry::LogFormat;
use serde::Deserialize;

/// A configuration that is sound.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this coordinator: its audit chain, holder of leases.
    pub name: String,
    /// Where the store is.
    pub data_dir: PathBuf,
    /// Where agents and operators connect.
    pub listen: SocketAddr,
    /// `HOST:PORT` of every coordinator, as agents and operators reach it.
    pub advertise: Vec<String>,
    /// Where `/metrics` and `/healthz` are served; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Key-encryption keys, the first one wraps.
    pub kek_files: Vec<PathBuf>,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Logs and traces.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// For people or for programs.
    pub log_format: LogFormat,
    /// A filter such as "info".
    pub log_level: String,
    /// An OTLP collector; none: no export.
    pub otlp_endpoint: Option<String>,
    /// Share of traces begun here that are recorded.
    pub sample_ratio: f64,
}

/// A configuration with mistakes.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has a key that is not known.
    #[error("configuration {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Values that cannot be.
    #[error("configuration {path} has mistakes: {}", mistakes.join("; "))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// Every one.
        mistakes: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default = "default_name")]
    name: String,
    data_dir: PathBuf,
    #[serde(default = "default_listen")]
    listen: String,
    advertise: Vec<String>,
    #[serde(default = "default_metrics")]
    metrics_listen: String,
    kek_files: Vec<PathBuf>,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    log_format: Option<String>,
    log_level: Option<String>,
    otlp_endpoint: Option<String>,
    sample_ratio: Option<f64>,
}

fn default_name() -> String {
    "c1".into()
}

fn default_listen() -> String {
    "0.0.0.0:7443".into()
}

fn default_metrics() -> String {
    "127.0.0.1:9464".into()
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for the errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let mut mistakes = Vec::new();
        if let Err(error) = reseal_proto::identity::check_name("coordinator", &raw.name) {
            mistakes.push(error.to_string());
        }
        let listen = address(&mut mistakes, "listen", &raw.listen);
        let metrics_listen = match raw.metrics_listen.as_str() {
            "" => None,
            text => address(&mut mistakes, "metrics_listen", text),
        };
        if raw.advertise.is_empty() {
            mistakes.push("advertise is empty: agents would not know where to connect".into());
        }
        for advertised in &raw.advertise {
            let port = advertised
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
            if port.is_none() {
                mistakes.push(format!("advertise {advertised:?} is not HOST:PORT"));
            }
        }
        if raw.kek_files.is_empty() {
            mistakes.push("kek_files is empty: name the file that holds the key-encryption key".into());
        }
        let telemetry = telemetry(raw.telemetry, &mut mistakes);
        match listen {
            Some(listen) if mistakes.is_empty() => Ok(Self {
                name: raw.name,
                data_dir: raw.data_dir,
                listen,
                advertise: raw.advertise,
                metrics_listen,
                kek_files: raw.kek_files,
                telemetry,
            }),
            Some(_) | None => Err(ConfigError::Mistakes { path: path.to_owned(), mistakes }),
        }
    }
}

fn telemetry(raw: RawTelemetry, mistakes: &mut Vec<String>) -> TelemetryConfig {
    let log_format = match raw.log_format.as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            mistakes.push(format!("telemetry.log_format {other:?} is not text or json"));
            LogFormat::Text
        }
    };
    let sample_ratio = raw.sample_ratio.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&sample_ratio) {
        mistakes.push(format!("telemetry.sample_ratio {sample_ratio} is not between 0 and 1"));
    }
    let otlp_endpoint = raw.otlp_endpoint.or_else(|| std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok());
    TelemetryConfig {
        log_format,
        log_level: raw.log_level.unwrap_or_else(|| "info".into()),
        otlp_endpoint: otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
        sample_ratio,
    }
}

fn address(mistakes: &mut Vec<String>, key: &str, text: &str) -> Option<SocketAddr> {
    text.parse().map_err(|_| mistakes.push(format!("{key} {text:?} is not ADDRESS:PORT"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("test.toml"), text)
    }

    #[test]
    fn defaults() {
        let config = parse("data_dir = \"/d\"\nadvertise = [\"a:1\"]\nkek_files = [\"k\"]").unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.name, "c1");
    }

    #[test]
    fn every_mistake_at_once() {
        let error = parse("name = \"A\"\ndata_dir = \"/d\"\nlisten = \"x\"\nadvertise = [\"a\"]\nkek_files = []\n[telemetry]\nlog_format = \"xml\"\nsample_ratio = 2.0").unwrap_err();
        let ConfigError::Mistakes { mistakes, .. } = error else { panic!("{error:?}") };
        assert_eq!(mistakes.len(), 6, "{mistakes:?}");
    }

    #[test]
    fn an_unknown_key_is_a_mistake() {
        let error = parse("data_dir = \"/d\"\nadvertise = [\"a:1\"]\nkek_files = [\"k\"]\nlisten_on = \"x\"")
            .unwrap_err();
        assert!(matches!(error, ConfigError::Parse { .. }));
    }
}
