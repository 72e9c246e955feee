//! `/metrics` and `/healthz` for a scraper on the same network.
//!
//! Two fixed answers to a GET, bounded in size and time; it reads nothing else
//! and serves no secret. The dashboard has a server of its own.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::view::View;

const REQUEST: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 16;

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics, view: View) {
    let slots = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (metrics, view) = (metrics.clone(), view.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &metrics, &view)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics, view: &View) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(512);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line {
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.render(view))
        }
        b"GET /healthz HTTP/1.1" | b"GET /healthz HTTP/1.0" => ("200 OK", "text/plain", "ok\n".to_owned()),
        _ => ("404 Not Found", "text/plain", "there are /metrics and /healthz\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
