//! How many connections one address may have on their way through TLS.
//!
//! Many agents may sit behind one address, so there is room for a fleet that comes
//! back at once; but one address cannot take the handshakes of all the others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Handshakes of one address at a time; more wait.
pub(super) const HANDSHAKES: usize = 256;
/// Connections of one address that wait or shake hands; more are closed.
pub(super) const CONNECTIONS: usize = 2048;

/// The addresses that are connecting now. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<HashMap<IpAddr, Source>>>);

struct Source {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

/// One connection's place; given back when it is dropped.
pub(super) struct Place {
    sources: Sources,
    address: IpAddr,
    /// To be taken for the handshake.
    pub(super) handshakes: Arc<Semaphore>,
}

impl Sources {
    /// A place for one more connection from this address; `None` when it has enough.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let address = site(address);
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = sources
            .entry(address)
            .or_insert_with(|| Source { connections: 0, handshakes: Arc::new(Semaphore::new(HANDSHAKES)) });
        if source.connections >= CONNECTIONS {
            return None;
        }
        source.connections += 1;
        Some(Place { sources: self.clone(), address, handshakes: source.handshakes.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get_mut(&self.address) {
            source.connections -= 1;
            if source.connections == 0 {
                sources.remove(&self.address);
            }
        }
    }
}

/// An IPv6 site has 2^64 addresses: they count as one.
fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_enough_and_another_has_room() {
        let sources = Sources::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let mut places: Vec<Place> = (0..CONNECTIONS).map_while(|_| sources.enter(one)).collect();
        assert_eq!(places.len(), CONNECTIONS);
        assert!(sources.enter(one).is_none());
        assert!(sources.enter(other).is_some());
        places.pop();
        let again = sources.enter(one);
        assert_eq!(again.map(|place| place.handshakes.available_permits()), Some(HANDSHAKES));
        drop(places);
        assert!(sources.0.lock().unwrap().is_empty(), "nothing is remembered");
    }

    #[test]
    fn a_site_is_one_source() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(site(parse("2001:db8:1:2:3::4")), site(parse("2001:db8:1:2::9")));
        assert_ne!(site(parse("2001:db8:1:2::1")), site(parse("2001:db8:1:3::1")));
        assert_eq!(site(parse("::ffff:10.0.0.1")), parse("10.0.0.1"));
    }
}
