//! A page for Prometheus: what this agent looks after. Off unless configured.
//!
//! Text exposition format 0.0.4, made when asked. No label carries a name that
//! an outsider chose, except the certificate's id, which is escaped.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::discover::Host;
use crate::link::{Handle, Shared};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves the page; without an address it only never returns.
pub async fn run(listen: Option<SocketAddr>, shared: Shared, session: watch::Receiver<Option<Handle>>) {
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
        let host = shared.discovery.host().unwrap_or_default();
        let now = Now {
            connected: session.borrow().is_some(),
            unsent: shared.outbox.waiting().len(),
            orders: shared.orders.waiting(),
            skew: shared.clock.skew(),
        };
        let body = page(&host, &now);
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

/// What the page shows besides the host.
struct Now {
    connected: bool,
    unsent: usize,
    orders: usize,
    skew: Option<i64>,
}

fn page(host: &Host, now: &Now) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: i64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    gauge(
        "reseal_agent_session_up",
        "1 while a coordinator has a session with this host.",
        now.connected.into(),
    );
    gauge(
        "reseal_agent_installations",
        "Installations that containers declare.",
        count(host.installations.len()),
    );
    gauge(
        "reseal_agent_discovered",
        "Certificates that were found and that nobody declared.",
        count(host.discovered.len()),
    );
    gauge("reseal_agent_findings", "Findings on this host.", count(host.findings.len()));
    gauge("reseal_agent_orders_waiting", "Orders that wait for their turn, at most 256.", count(now.orders));
    gauge(
        "reseal_agent_results_unacknowledged",
        "Results that no coordinator has acknowledged yet.",
        count(now.unsent),
    );
    // Unknown until a coordinator has been heard: no line, not zero.
    if let Some(skew) = now.skew {
        gauge(
            "reseal_agent_clock_skew_seconds",
            "Seconds by which this host's clock is ahead of the coordinator's.",
            skew,
        );
    }
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
        let now = Now { connected: true, unsent: 3, orders: 0, skew: Some(-7) };
        let body = page(&host, &now);
        assert!(body.contains("\nreseal_agent_clock_skew_seconds -7\n"), "{body}");
        assert!(!page(&host, &Now { skew: None, ..now }).contains("skew"));
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
