//! What the `openssl` program sees: a client that shares no code with the product.
//!
//! Every function starts a fresh process and a fresh connection.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::process::{command, line, run};
use crate::services::Endpoint;

/// A certificate as PEM, and what tests ask of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// PEM, one certificate.
    pub pem: String,
    /// SHA-256 over the DER, lower-case hex.
    pub fingerprint: String,
    /// SHA-256 over the SubjectPublicKeyInfo, lower-case hex: names the key.
    pub key: String,
    /// The subject, as text.
    pub subject: String,
    /// The issuer, as text.
    pub issuer: String,
}

/// What an endpoint served in one handshake.
#[derive(Clone, Debug)]
pub struct Served {
    /// Leaf first.
    pub chain: Vec<Certificate>,
}

impl Served {
    /// The certificate of the endpoint itself.
    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The intermediate that issued it.
    pub fn intermediate(&self) -> Result<&Certificate> {
        self.chain.get(1).context("the endpoint serves no intermediate")
    }
}

/// A client certificate: chain and key files.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// PEM, leaf first.
    pub chain: &'a Path,
    /// PEM.
    pub key: &'a Path,
}

/// One handshake, checked by OpenSSL against `root` and the endpoint's name.
pub fn served(endpoint: &Endpoint, root: &Path) -> Result<Served> {
    let text = s_client(endpoint, root, None, "", &["-showcerts"])?;
    let chain = certificates(&text)?;
    if chain.is_empty() {
        bail!("{} at {} served no certificate", endpoint.service, endpoint.address);
    }
    Ok(Served { chain })
}

/// One HTTP request over a new connection; the status of the answer.
pub fn status(endpoint: &Endpoint, root: &Path, client: Option<Client>) -> Result<u16> {
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", endpoint.sni);
    let text = s_client(endpoint, root, client, &request, &["-quiet", "-verify_quiet"])?;
    let first = text.lines().find(|line| line.starts_with("HTTP/"));
    first
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .with_context(|| format!("{} gave no HTTP answer: {text:?}", endpoint.service))
}

fn s_client(
    endpoint: &Endpoint,
    root: &Path,
    client: Option<Client>,
    input: &str,
    options: &[&str],
) -> Result<String> {
    let address = endpoint.address.to_string();
    let words = [
        "10",
        "openssl",
        "s_client",
        "-connect",
        &address,
        "-servername",
        &endpoint.sni,
        "-verify_hostname",
        &endpoint.sni,
        "-verify_return_error",
    ];
    let mut openssl = command("timeout", &words);
    openssl.arg("-CAfile").arg(root).args(options);
    if let Some(protocol) = endpoint.talk.starttls() {
        openssl.args(["-starttls", protocol]);
    }
    if let Some(client) = client {
        openssl.arg("-cert").arg(client.chain);
        openssl.arg("-cert_chain").arg(client.chain);
        openssl.arg("-key").arg(client.key);
    }
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // An early end of openssl shows in its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}", line(&openssl), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `openssl verify -x509_strict` of a served chain, for a TLS server.
pub fn verify_strict(served: &Served, root: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (leaf, rest) = (directory.path().join("leaf"), directory.path().join("rest"));
    std::fs::write(&leaf, &served.leaf().pem)?;
    let others: String = served.chain[1..].iter().map(|c| c.pem.as_str()).collect();
    std::fs::write(&rest, others)?;
    let words = ["verify", "-x509_strict", "-purpose", "sslserver"];
    let mut openssl = command("openssl", &words);
    openssl.arg("-CAfile").arg(root).arg("-untrusted").arg(rest).arg(leaf);
    run(&mut openssl).map(drop)
}

/// Do a certificate file and a key file (which may be the same) belong together?
pub fn pair_matches(certificate: &Path, key: &Path) -> Result<bool> {
    let of_certificate = run(command("openssl", &["x509", "-noout", "-pubkey", "-in"]).arg(certificate))?;
    let of_key = run(command("openssl", &["pkey", "-pubout", "-in"]).arg(key))?;
    Ok(of_certificate.trim() == of_key.trim())
}

/// The certificates in a text that contains PEM blocks.
pub fn certificates(text: &str) -> Result<Vec<Certificate>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let end = rest[start..].find(END).ok_or_else(|| anyhow!("a PEM block has no end"))?;
        let end = start + end + END.len();
        found.push(certificate(&rest[start..end])?);
        rest = &rest[end..];
    }
    Ok(found)
}

fn certificate(pem: &str) -> Result<Certificate> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    let (_, x509) = X509Certificate::from_der(&block.contents)?;
    Ok(Certificate {
        pem: format!("{pem}\n"),
        fingerprint: sha256(&block.contents),
        key: sha256(x509.public_key().raw),
        subject: x509.subject().to_string(),
        issuer: x509.issuer().to_string(),
    })
}

/// The DER form of a certificate.
pub fn der(certificate: &Certificate) -> Result<Vec<u8>> {
    let (_, block) = x509_parser::pem::parse_x509_pem(certificate.pem.as_bytes())?;
    Ok(block.contents)
}

/// SHA-256, lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}
