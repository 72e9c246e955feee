//! A page for Prometheus: what this agent looks after. Off unless configured.
//!
//! Text exposition format 0.0.4, made when asked. No label carries a name that
//! an outsider chose, except the certificate's id, which is escaped.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::discover::Host;
use crate::discover::watch::Discovery;
use crate::link::Handle;
use crate::outbox::Outbox;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves the page; without an address it only never returns.
pub async fn run(
    listen: Option<SocketAddr>,
    discovery: Discovery,
    outbox: Arc<Outbox>,
    session: watch::Receiver<Option<Handle>>,
) {
    let listener = match listen {
        None => return std::future::pending().await,
        Some(address) => match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                warn!(%address, %error, "no metrics page");
                return std::future::pending().await;
            }
        },
    };
    info!(address = ?listen, "metrics page");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(TIMEOUT).await;
            continue;
        };
        let host = discovery.host().unwrap_or_default();
        let body = page(&host, outbox.waiting().len(), session.borrow().is_some());
        // One at a time: it is a small page for one reader.
        let _ = tokio::time::timeout(TIMEOUT, answer(stream, &body)).await;
    }
}

async fn answer(mut stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut request = [0; 2048];
    let mut length = 0;
    while length < request.len() && !request[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut request[length..]).await?;
        if read == 0 {
            return Ok(());
        }
        length += read;
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", body)
    } else if request.starts_with(b"GET /healthz ") {
        ("200 OK", "ok\n")
    } else {
        ("404 Not Found", "only /metrics and /healthz are here\n")
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn page(host: &Host, unsent: usize, connected: bool) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: usize| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    gauge(
        "reseal_agent_session_up",
        "1 while a coordinator has a session with this host.",
        usize::from(connected),
    );
    gauge("reseal_agent_installations", "Installations that containers declare.", host.installations.len());
    gauge("reseal_agent_findings", "Findings on this host.", host.findings.len());
    gauge("reseal_agent_results_unacknowledged", "Results that no coordinator has acknowledged yet.", unsent);
    text.push_str("# HELP reseal_certificate_expiration_timestamp_seconds End of the certificate on disk.\n# TYPE reseal_certificate_expiration_timestamp_seconds gauge\n");
    for installation in host.installations.values() {
        if let Some(certificate) = &installation.certificate {
            let id = installation.id.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(
                text,
                "reseal_certificate_expiration_timestamp_seconds{{installation=\"{id}\"}} {}",
                certificate.not_after
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::{assemble, tests::web};
    use reseal_proto::v1::CertificateFacts;

    #[tokio::test]
    async fn the_page_is_served_and_nothing_else() {
        let mut host = assemble(vec![web("web", "/srv/t\"ls")]);
        for installation in host.installations.values_mut() {
            installation.certificate =
                Some(CertificateFacts { not_after: 42, ..CertificateFacts::default() });
        }
        let body = page(&host, 3, true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (path, expected) in [("/metrics", "t\\\"ls/site.crt\"} 42"), ("/secret", "404")] {
            let client = async {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let server = async {
                let (stream, _) = listener.accept().await.unwrap();
                answer(stream, &body).await.unwrap();
            };
            let (text, ()) = tokio::join!(client, server);
            assert!(text.contains(expected), "{text}");
        }
    }
}
