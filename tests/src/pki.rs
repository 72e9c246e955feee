//! A CA made with the `openssl` program, for two uses: to prove the harness
//! without the product, and to forge what the product must refuse.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{command, run};

/// A root and the intermediates below it, in a directory of their own.
#[derive(Debug)]
pub struct Pki {
    directory: TempDir,
}

impl Pki {
    /// Makes a root with a new key.
    pub fn new() -> Result<Self> {
        let pki = Self { directory: tempfile::tempdir()? };
        pki.key("root")?;
        let extensions = "basicConstraints=critical,CA:TRUE";
        let usage = "keyUsage=critical,keyCertSign,cRLSign";
        let words = ["req", "-x509", "-new", "-subj", "/CN=test root", "-days", "2", "-addext"];
        run(command("openssl", &words)
            .args([extensions, "-addext", usage, "-key"])
            .arg(pki.at("root.key"))
            .arg("-out")
            .arg(pki.root()))
        .context("cannot make a root")?;
        Ok(pki)
    }

    /// The root's certificate.
    pub fn root(&self) -> PathBuf {
        self.at("root.crt")
    }

    /// Makes an intermediate called `name`.
    pub fn intermediate(&self, name: &str) -> Result<()> {
        let extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\n\
             keyUsage=critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
        self.issue("root", name, &format!("/CN=test {name}"), extensions)
    }

    /// Makes a certificate for server and client use: files (chain, key).
    pub fn leaf(&self, issuer: &str, dns_name: &str) -> Result<(PathBuf, PathBuf)> {
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:{dns_name}\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        );
        let name = format!("{issuer}-{dns_name}");
        self.issue(issuer, &name, &format!("/CN={dns_name}"), &extensions)?;
        let chain = self.at(&format!("{name}.chain"));
        let leaf = fs::read_to_string(self.at(&format!("{name}.crt")))?;
        let above = fs::read_to_string(self.at(&format!("{issuer}.crt")))?;
        fs::write(&chain, leaf + &above)?;
        Ok((chain, self.at(&format!("{name}.key"))))
    }

    fn issue(&self, issuer: &str, name: &str, subject: &str, extensions: &str) -> Result<()> {
        self.key(name)?;
        let request = self.at(&format!("{name}.csr"));
        run(command("openssl", &["req", "-new", "-subj", subject, "-key"])
            .arg(self.at(&format!("{name}.key")))
            .arg("-out")
            .arg(&request))?;
        let file = self.at(&format!("{name}.ext"));
        fs::write(&file, extensions)?;
        run(command("openssl", &["x509", "-req", "-days", "1", "-in"])
            .arg(&request)
            .arg("-CA")
            .arg(self.at(&format!("{issuer}.crt")))
            .arg("-CAkey")
            .arg(self.at(&format!("{issuer}.key")))
            .arg("-extfile")
            .arg(&file)
            .arg("-out")
            .arg(self.at(&format!("{name}.crt"))))
        .with_context(|| format!("cannot issue {name} from {issuer}"))?;
        Ok(())
    }

    fn key(&self, name: &str) -> Result<()> {
        let words = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
        run(command("openssl", &words).arg(self.at(&format!("{name}.key")))).map(drop)
    }

    fn at(&self, name: &str) -> PathBuf {
        Path::new(self.directory.path()).join(name)
    }
}
