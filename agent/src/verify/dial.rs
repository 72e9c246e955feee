//! Connections to endpoints: from the host, or from within a container's network.
//!
//! A socket belongs to the network namespace it was made in, for ever. So a
//! thread of its own enters the container's namespace (setns(2)), connects,
//! hands the socket over and ends: no thread of the runtime ever changes
//! namespaces. Nothing else is done in there.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::probe::ProbeError;
use crate::discover::{Endpoint, Within};

/// Connecting alone; everything that is dialled is on this host.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// Connects to the endpoint, from where it says.
pub(super) async fn dial(endpoint: &Endpoint) -> Result<TcpStream, ProbeError> {
    let stream = match &endpoint.within {
        None => from_host(&endpoint.address).await?,
        Some(within) => {
            let address = endpoint.address.parse().map_err(|_| ProbeError::Name(endpoint.address.clone()))?;
            from_within(within, address).await?
        }
    };
    // Small messages back and forth.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn from_host(address: &str) -> Result<TcpStream, ProbeError> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(ProbeError::Connect),
        Err(_) => Err(ProbeError::Connect(timed_out())),
    }
}

async fn from_within(within: &Within, address: SocketAddr) -> Result<TcpStream, ProbeError> {
    let (sender, receiver) = oneshot::channel();
    let (pid, container) = (within.pid, within.container.clone());
    let work = move || {
        let connected = enter(pid, container).and_then(|()| {
            std::net::TcpStream::connect_timeout(&address, CONNECT).map_err(ProbeError::Connect)
        });
        // Nobody waits any more: the connection ends with this thread.
        let _ = sender.send(connected);
    };
    std::thread::Builder::new().name("reseal-within".to_owned()).spawn(work).map_err(ProbeError::Connect)?;
    let stream = receiver.await.unwrap_or_else(|_| Err(ProbeError::Connect(timed_out())))?;
    stream.set_nonblocking(true).map_err(ProbeError::Connect)?;
    TcpStream::from_std(stream).map_err(ProbeError::Connect)
}

/// Moves *this thread* into the network namespace of process `pid`, for good.
fn enter(pid: i32, container: String) -> Result<(), ProbeError> {
    let entered = (|| -> io::Result<()> {
        let theirs = File::open(format!("/proc/{pid}/ns/net"))?;
        if same(&theirs, &File::open("/proc/thread-self/ns/net")?)? {
            return Ok(());
        }
        move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
    })();
    match entered {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(ProbeError::Ended { container }),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(ProbeError::Forbidden { container }),
        Err(source) => Err(ProbeError::Enter { container, source }),
    }
}

/// Can this agent look from within the network of process `pid`? Tried, and nothing is dialled.
pub(crate) fn may_enter(pid: i32, container: &str) -> Result<(), ProbeError> {
    let container = container.to_owned();
    let thread = std::thread::spawn(move || enter(pid, container));
    thread.join().unwrap_or_else(|_| Err(ProbeError::Connect(timed_out())))
}

fn same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn timed_out() -> io::Error {
    io::Error::from(ErrorKind::TimedOut)
}
