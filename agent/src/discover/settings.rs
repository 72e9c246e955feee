//! `[discovery]` of the agent's settings: what is searched, and how far.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use super::files::walk::Limits;

/// Validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Nothing but labels is looked at.
    pub off: bool,
    /// Bounds of each mount.
    pub limits: Limits,
    /// Directories of the host that are not entered.
    pub skip: Vec<String>,
    /// Image layers are left alone.
    pub no_images: bool,
    /// Listening ports are not dialled.
    pub no_probes: bool,
    /// Ports that are never dialled.
    pub skip_ports: BTreeSet<u16>,
}

/// As the file has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    enabled: Option<bool>,
    max_depth: Option<usize>,
    max_files: Option<usize>,
    max_file_bytes: Option<u64>,
    max_seconds: Option<u64>,
    #[serde(default)]
    skip: Vec<String>,
    images: Option<bool>,
    probe_endpoints: Option<bool>,
    #[serde(default)]
    probe_skip_ports: BTreeSet<u16>,
}

impl Raw {
    /// With the defaults; what is wrong is added to `mistakes`.
    pub fn validate(self, mistakes: &mut Vec<String>) -> Settings {
        let defaults = Limits::default();
        let mut within = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                mistakes.push(format!("discovery.{name} {value} must be {least} to {most}"));
            }
        };
        let depth = self.max_depth.unwrap_or(defaults.depth);
        within("max_depth", depth as u64, 1, 64);
        let files = self.max_files.unwrap_or(defaults.files);
        within("max_files", files as u64, 100, 10_000_000);
        let size = self.max_file_bytes.unwrap_or(defaults.size);
        within("max_file_bytes", size, 16 * 1024, 16 * 1024 * 1024);
        let seconds = self.max_seconds.unwrap_or(defaults.time.as_secs());
        within("max_seconds", seconds, 1, 3600);
        for path in self.skip.iter().filter(|path| !path.starts_with('/')) {
            mistakes.push(format!("discovery.skip {path:?} must be absolute"));
        }
        Settings {
            off: !self.enabled.unwrap_or(true),
            limits: Limits { depth, files, size, time: Duration::from_secs(seconds), ..defaults },
            skip: self.skip.iter().map(|path| path.trim_end_matches('/').to_owned()).collect(),
            no_images: !self.images.unwrap_or(true),
            no_probes: !self.probe_endpoints.unwrap_or(true),
            skip_ports: self.probe_skip_ports,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_have_bounds() {
        let raw: Raw =
            toml::from_str("max_depth = 0\nmax_file_bytes = 1\nskip = ['x']\nprobe_skip_ports = [25]")
                .unwrap();
        let mut mistakes = Vec::new();
        let settings = raw.validate(&mut mistakes);
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(settings.skip_ports.contains(&25) && !settings.off);
        assert!(toml::from_str::<Raw>("max_deph = 1").is_err());
    }
}
