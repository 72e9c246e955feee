//! Containers whose certificates lie as they do in the field: files mounted one by one,
//! certbot's links, two directories, key stores, DER.
//!
//! Each has a certificate of its own already, made by hand and about to end, so that it runs
//! from the beginning and what the agent replaces is somebody's. What is looked at is what
//! the *container* sees: its bytes come through `docker exec`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};

use crate::fleet::Host;
use crate::image;
use crate::machine::Need;
use crate::openssl::{self, Certificate};
use crate::process::{command, run};
use crate::services::{DOMAIN, Endpoint, HAPROXY};

/// Java opens what is written for it.
pub const JAVA: &[Need] = &[("keytool", &["default-jre-headless"])];
/// Of every key store here.
pub const PASSWORD: &str = "changeit";

/// How the files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// nginx; certificate and key, each mounted by itself.
    Singles,
    /// nginx; the certificate mounted by itself, the key in a directory.
    Mixed,
    /// nginx; `live/site/*.pem`, links to `archive/`, with a chain file besides.
    Certbot,
    /// nginx; `certs/` and `private/` of one mount.
    Debian,
    /// HAProxy; the combined file mounted by itself.
    SingleCombined,
    /// OpenSSL's own server; PKCS#12, which it reads when it starts.
    Pkcs12,
    /// No server; a Java key store.
    Jks,
    /// No server; certificate and key in DER.
    Der,
}

impl Lie {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Singles,
        Self::Mixed,
        Self::Certbot,
        Self::Debian,
        Self::SingleCombined,
        Self::Pkcs12,
        Self::Jks,
        Self::Der,
    ];

    /// Can everything change in one step?
    pub fn is_atomic(self) -> bool {
        !matches!(self, Self::Singles | Self::Mixed | Self::SingleCombined)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Singles => "singles",
            Self::Mixed => "mixed",
            Self::Certbot => "certbot",
            Self::Debian => "debian",
            Self::SingleCombined => "edge",
            Self::Pkcs12 => "store",
            Self::Jks => "java",
            Self::Der => "binary",
        }
    }

    /// Certificate and key in the container.
    fn paths(self) -> (&'static str, &'static str) {
        match self {
            Self::Singles => ("/tls/site.crt", "/tls/site.key"),
            Self::Mixed => ("/tls/site.crt", "/keys/site.key"),
            Self::Certbot => ("/le/live/site/fullchain.pem", "/le/live/site/privkey.pem"),
            Self::Debian => ("/ssl/certs/site.pem", "/ssl/private/site.key"),
            Self::SingleCombined => ("/tls/site.pem", "/tls/site.pem"),
            Self::Pkcs12 => ("/tls/site.p12", "/tls/site.p12"),
            Self::Jks => ("/tls/site.jks", "/tls/site.jks"),
            Self::Der => ("/tls/site.der", "/tls/site.key"),
        }
    }
}

/// A container with a certificate.
#[derive(Clone, Debug)]
pub struct Laid {
    /// How its files lie.
    pub lie: Lie,
    /// Its name.
    pub name: String,
    /// The name in its certificate.
    pub dns: String,
    /// Where it serves, if it does.
    pub endpoint: Option<Endpoint>,
    /// Its files on the host.
    pub directory: PathBuf,
}

/// A certificate and key as somebody has made them by hand, a month ago; seconds until it
/// ends. PEM, then DER.
pub fn by_hand(dns: &str, left: i64) -> Result<(String, String, Vec<u8>, Vec<u8>)> {
    let mut params = CertificateParams::new(vec![dns.to_owned()])?;
    let now = time_of_now()?;
    params.not_before = date(now - 30 * 86_400)?;
    params.not_after = date(now + left)?;
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem(), certificate.der().to_vec(), key.serialize_der()))
}

fn time_of_now() -> Result<i64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_secs())?)
}

fn date(seconds: i64) -> Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(seconds)?)
}

impl Laid {
    /// Puts the files down and starts the container.
    pub fn start(host: &Host, lie: Lie, port: u16, more: &[(&str, &str)]) -> Result<Self> {
        Self::start_as(host, lie, lie.name(), port, more, &[])
    }

    /// The same under another name, with further words for `docker run`.
    pub fn start_as(
        host: &Host,
        lie: Lie,
        name: &str,
        port: u16,
        more: &[(&str, &str)],
        words: &[&str],
    ) -> Result<Self> {
        let dns = format!("{name}.{}.{DOMAIN}", host.name);
        let serves = !matches!(lie, Lie::Jks | Lie::Der);
        let endpoint = serves.then(|| Endpoint {
            service: name.to_owned(),
            address: SocketAddr::new(IpAddr::V4(host.address), port),
            sni: dns.clone(),
            status: 200,
            talk: crate::talk::Talk::Http,
        });
        let directory = host.directory().join("layouts").join(name);
        let laid = Self { lie, name: name.to_owned(), dns, endpoint, directory };
        laid.put()?;
        laid.run(host, more, words)?;
        Ok(laid)
    }

    /// A path below its files on the host.
    pub fn at(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    fn put(&self) -> Result<()> {
        for directory in ["etc", "tls", "keys", "le/live/site", "le/archive/site", "ssl/certs", "ssl/private"]
        {
            fs::create_dir_all(self.at(directory))?;
        }
        let (chain, key, chain_der, key_der) = by_hand(&self.dns, 3600)?;
        let write = |path: &str, bytes: &[u8]| fs::write(self.at(path), bytes).context(path.to_owned());
        let (certificate, secret) = self.lie.paths();
        match self.lie {
            Lie::Singles | Lie::Mixed | Lie::Debian => {
                write(&certificate[1..], chain.as_bytes())?;
                write(&secret[1..], key.as_bytes())?;
            }
            Lie::SingleCombined => write(&certificate[1..], format!("{chain}{key}").as_bytes())?,
            Lie::Der => {
                write(&certificate[1..], &chain_der)?;
                write(&secret[1..], &key_der)?;
            }
            Lie::Certbot => {
                let files = [("cert", &chain), ("chain", &chain), ("fullchain", &chain), ("privkey", &key)];
                for (file, content) in files {
                    write(&format!("le/archive/site/{file}1.pem"), content.as_bytes())?;
                    let target = format!("../../archive/site/{file}1.pem");
                    symlink(target, self.at(&format!("le/live/site/{file}.pem")))?;
                }
            }
            Lie::Pkcs12 | Lie::Jks => {
                write("tls/password", format!("{PASSWORD}\n").as_bytes())?;
                write("by-hand.pem", format!("{chain}{key}").as_bytes())?;
                let pass = format!("pass:{PASSWORD}");
                let words = ["pkcs12", "-export", "-name", "web", "-passout", &pass, "-in"];
                let store = self.at("by-hand.p12");
                run(command("openssl", &words).arg(self.at("by-hand.pem")).arg("-out").arg(&store))?;
                if self.lie == Lie::Pkcs12 {
                    fs::copy(store, self.at("tls/site.p12"))?;
                } else {
                    convert(&store, "PKCS12", &self.at("tls/site.jks"), "JKS")?;
                }
            }
        }
        let secret = self.at(&secret[1..]);
        if secret.exists() {
            fs::set_permissions(secret, PermissionsExt::from_mode(0o600))?;
        }
        write("etc/nginx.conf", self.nginx().as_bytes())?;
        write("etc/haproxy.cfg", HAPROXY.as_bytes())
    }

    fn nginx(&self) -> String {
        let (certificate, key) = self.lie.paths();
        format!(
            "user root;\nworker_processes 2;\nerror_log /dev/stderr notice;\npid /run/nginx.pid;\n\
             events {{}}\nhttp {{\n  access_log off;\n  server {{\n    listen 443 ssl;\n    \
             ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    \
             location / {{ return 200 \"ok\\n\"; }}\n  }}\n}}\n"
        )
    }

    fn run(&self, host: &Host, more: &[(&str, &str)], further: &[&str]) -> Result<()> {
        let (certificate, key) = self.lie.paths();
        let mut words: Vec<String> = vec!["run".into(), "--detach".into(), "--restart=on-failure".into()];
        words.push(format!("--name={}", self.name));
        let mounts: &[(&str, &str)] = match self.lie {
            Lie::Singles => &[("tls/site.crt", "/tls/site.crt"), ("tls/site.key", "/tls/site.key")],
            Lie::Mixed => &[("tls/site.crt", "/tls/site.crt"), ("keys", "/keys")],
            Lie::Certbot => &[("le", "/le")],
            Lie::Debian => &[("ssl", "/ssl")],
            Lie::SingleCombined => &[("tls/site.pem", "/tls/site.pem")],
            Lie::Pkcs12 | Lie::Jks | Lie::Der => &[("tls", "/tls")],
        };
        for (from, to) in mounts.iter().chain(&[("etc", "/service")]) {
            words.push(format!("--volume={}:{to}:ro", self.at(from).display()));
        }
        let mut labels =
            vec![("enable", "true"), ("cert.site.names", &self.dns), ("cert.site.path", certificate)];
        if let Some(endpoint) = &self.endpoint {
            words.push(format!("--publish={}:443", endpoint.address.port()));
            labels.push(("cert.site.verify", "443"));
        }
        let command: &[&str] = match self.lie {
            Lie::Singles | Lie::Mixed | Lie::Certbot | Lie::Debian => {
                labels.push(("cert.site.key", key));
                words.push("--stop-signal=SIGQUIT".into());
                &["nginx", "-c", "/service/nginx.conf", "-g", "daemon off;"]
            }
            Lie::SingleCombined => {
                labels.extend([("cert.site.layout", "combined"), ("cert.site.reload", "signal:USR2")]);
                words.push("--stop-signal=SIGUSR1".into());
                &["haproxy", "-W", "-db", "-f", "/service/haproxy.cfg"]
            }
            Lie::Pkcs12 => {
                labels.extend([("cert.site.layout", "pkcs12"), ("cert.site.reload", "restart")]);
                words.push("--stop-timeout=1".into());
                &["sh", "-c", SERVE_STORE]
            }
            Lie::Jks | Lie::Der => {
                let layout = if self.lie == Lie::Jks { "jks" } else { "der" };
                labels.extend([("cert.site.layout", layout), ("cert.site.reload", "none")]);
                words.push("--stop-timeout=1".into());
                &["sleep", "infinity"]
            }
        };
        if matches!(self.lie, Lie::Pkcs12 | Lie::Jks) {
            labels.push(("cert.site.password-file", "/tls/password"));
        }
        if self.lie == Lie::Certbot {
            labels.push(("cert.site.chain", "/le/live/site/chain.pem"));
        }
        labels.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
        words.extend(labels.iter().chain(more).map(|(key, value)| format!("--label=reseal.{key}={value}")));
        words.extend(further.iter().map(|word| (*word).to_owned()));
        words.push(image::NAME.to_owned());
        words.extend(command.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.engine.docker(&words).with_context(|| format!("cannot start container {}", self.name))?;
        Ok(())
    }

    /// Runs a command in the container.
    pub fn exec(&self, host: &Host, words: &[&str]) -> Result<String> {
        host.engine.docker(&[&["exec", self.name.as_str()], words].concat())
    }

    /// The bytes of a file as the container sees it.
    pub fn bytes(&self, host: &Host, path: &str) -> Result<Vec<u8>> {
        let hex = self.exec(host, &["od", "-An", "-v", "-tx1", path])?;
        Ok(hex::decode(hex.split_whitespace().collect::<String>())?)
    }

    /// Chain and key as the container sees them; fails when they do not belong together.
    pub fn inside(&self, host: &Host) -> Result<Vec<Certificate>> {
        let (chain, matches) = self.look(host)?;
        ensure!(matches, "certificate and key in {} do not belong together", self.name);
        Ok(chain)
    }

    /// The chain, and whether the key is its.
    pub fn look(&self, host: &Host) -> Result<(Vec<Certificate>, bool)> {
        let (certificate, key) = self.lie.paths();
        let directory = tempfile::tempdir()?;
        let (crt, secret) = (directory.path().join("crt"), directory.path().join("key"));
        fs::write(&crt, self.bytes(host, certificate)?)?;
        fs::write(&secret, self.bytes(host, key)?)?;
        let pass = format!("pass:{PASSWORD}");
        match self.lie {
            Lie::Jks | Lie::Pkcs12 => {
                // For Java's own format: by Java, which opens the key as well.
                let store = directory.path().join("p12");
                if self.lie == Lie::Jks {
                    convert(&crt, "JKS", &store, "PKCS12")?;
                } else {
                    fs::copy(&crt, &store)?;
                }
                let words = ["pkcs12", "-nodes", "-passin", &pass, "-in"];
                let text = run(command("openssl", &words).arg(&store))?;
                fs::write(&crt, &text)?;
                fs::write(&secret, &text)?;
            }
            Lie::Der => {
                let pem = |words: &[&str], file: &Path| -> Result<()> {
                    let text = run(command("openssl", words).arg("-in").arg(file))?;
                    Ok(fs::write(file, text)?)
                };
                pem(&["x509", "-inform", "DER"], &crt)?;
                pem(&["pkey", "-inform", "DER"], &secret)?;
            }
            Lie::Singles | Lie::Mixed | Lie::Certbot | Lie::Debian | Lie::SingleCombined => {}
        }
        let chain = openssl::certificates(&fs::read_to_string(&crt)?)?;
        ensure!(!chain.is_empty(), "no certificate in {}", self.name);
        Ok((chain, openssl::pair_matches(&crt, &secret)?))
    }
}

/// Java's own tool makes one store from another.
fn convert(from: &Path, kind: &str, to: &Path, into: &str) -> Result<()> {
    let words = ["-importkeystore", "-noprompt", "-srcstorepass", PASSWORD, "-deststorepass", PASSWORD];
    let mut keytool = command("keytool", &words);
    keytool.args(["-srcstoretype", kind, "-deststoretype", into, "-srckeystore"]);
    run(keytool.arg(from).arg("-destkeystore").arg(to)).map(drop)
}

const SERVE_STORE: &str = "openssl pkcs12 -in /tls/site.p12 -passin file:/tls/password -nokeys -cacerts \
     -out /tmp/chain.pem && chain=; if test -s /tmp/chain.pem; then chain='-cert_chain /tmp/chain.pem'; fi; \
     exec openssl s_server -quiet -accept 443 -www -cert /tls/site.p12 -pass file:/tls/password $chain";
