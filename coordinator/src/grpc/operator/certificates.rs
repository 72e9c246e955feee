//! The fleet's certificates: listed, filtered, sorted; one of them with all its places.
//!
//! Nothing here keeps a list whole: in the order of the store rows are sent host by host,
//! in another order window by window.

use prost::Message as _;
use reseal_proto::v1::{
    CertificateFilter, CertificateRow, CertificateSort, Finding, HostFinding, Installation,
    ListCertificatesRequest, ShowCertificateReply,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::OperatorService;
use crate::domain::listing::{Filter, Window, sort_key};
use crate::domain::renewal;
use crate::domain::selection::{IssuerKey, Selection};
use crate::grpc::convert::{chain, status};
use crate::store::keys;
use crate::store::record::Host;

/// Bytes of rows, as they are sent, in one window of a sorted list.
pub(super) const WINDOW: usize = 8 * 1024 * 1024;
/// Sorted lists at a time.
pub(in crate::grpc) const SORTED: usize = 8;
/// Places of one certificate that are shown.
const PLACES: usize = 1_000;
/// Findings about one certificate that are shown.
const FINDINGS: usize = 100;

/// What a list is about.
pub(super) struct Listing {
    selection: Selection,
    filter: Filter,
    sort: CertificateSort,
    reverse: bool,
    authorities: Vec<(String, IssuerKey)>,
    tainted: Vec<String>,
}

impl Listing {
    /// In the order of the store?
    fn is_natural(&self) -> bool {
        self.sort == CertificateSort::Host && !self.reverse
    }
}

/// Where rows go; nothing more is sent when nobody listens.
pub(super) type Rows<T> = mpsc::Sender<Result<T, Status>>;

impl OperatorService {
    /// Understands what is asked for; `Some` place while it needs memory for sorting.
    pub(super) async fn listing(
        &self,
        request: ListCertificatesRequest,
    ) -> Result<(Listing, Option<OwnedSemaphorePermit>), Status> {
        let (selection, _) = self.selection(&request.selection.clone().unwrap_or_default()).await?;
        let filter = Filter::new(&request.filter.clone().unwrap_or_default())
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        let listing = Listing {
            selection,
            filter,
            sort: request.sort(),
            reverse: request.reverse,
            authorities: self.issuer_keys(),
            tainted: self.tainted().await?,
        };
        let place = if listing.is_natural() { None } else { Some(self.place_to_sort()?) };
        Ok((listing, place))
    }

    /// A place among those that sort.
    pub(super) fn place_to_sort(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.sorts.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{SORTED} lists are being sorted: try again in a moment"))
        })
    }

    fn issuer_keys(&self) -> Vec<(String, IssuerKey)> {
        self.view.read().authorities.iter().map(|(name, key)| (name.clone(), key.clone())).collect()
    }

    /// Sends the rows that are meant.
    pub(super) async fn send_certificates(
        &self,
        listing: &Listing,
        rows: &Rows<CertificateRow>,
    ) -> Result<(), Status> {
        let hosts = self.hosts_meant(&listing.selection).await?;
        if listing.is_natural() {
            for host in &hosts {
                let (installations, _) = self.inventory(host).await?;
                for row in self.rows_of(listing, host, installations) {
                    if rows.send(Ok(row)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            return Ok(());
        }
        let mut window = Window::new(WINDOW, listing.reverse);
        loop {
            for host in &hosts {
                let (installations, _) = self.inventory(host).await?;
                for row in self.rows_of(listing, host, installations) {
                    window.offer(sort_key(listing.sort, &row), row.encoded_len(), row);
                }
                if rows.is_closed() {
                    return Ok(());
                }
            }
            if !send_window(&mut window, rows).await {
                return Ok(());
            }
        }
    }

    /// Names of the hosts on which something can be meant.
    pub(super) async fn hosts_meant(&self, selection: &Selection) -> Result<Vec<String>, Status> {
        let records = self.store.range::<Host>(keys::HOSTS).await.map_err(|error| status(&error))?;
        let state = self.view.read();
        let shows = |name: &str| {
            selection
                .issuer
                .as_ref()
                .is_none_or(|issuer| state.hosts.get(name).is_some_and(|host| host.shows(issuer)))
        };
        Ok(records
            .into_iter()
            .filter_map(|(key, host)| {
                let name = key.strip_prefix(keys::HOSTS)?;
                (selection.host(name, &host.value.labels) && shows(name)).then(|| name.to_owned())
            })
            .collect())
    }

    /// Those of a host's installations that are meant.
    fn rows_of(
        &self,
        listing: &Listing,
        host: &str,
        installations: Vec<Installation>,
    ) -> Vec<CertificateRow> {
        let meant = installations.into_iter().filter(|one| listing.selection.installation(host, one));
        let rows = meant.map(|one| self.row(host, one, &listing.authorities, &listing.tainted));
        rows.filter(|row| listing.filter.admits(row)).collect()
    }

    fn row(
        &self,
        host: &str,
        installation: Installation,
        authorities: &[(String, IssuerKey)],
        tainted: &[String],
    ) -> CertificateRow {
        let facts = installation.certificate.as_ref();
        let authority = facts.and_then(|facts| authorities.iter().find(|(_, key)| key.issued(facts)));
        let authority = authority.map(|(name, _)| name.as_str());
        CertificateRow {
            host: host.to_owned(),
            status: self.certificate_status(host, &installation, authority, tainted).into(),
            authority: authority.map(|name| format!("builtin/{name}")).unwrap_or_default(),
            installation: Some(installation),
        }
    }

    fn certificate_status(
        &self,
        host: &str,
        installation: &Installation,
        authority: Option<&str>,
        tainted: &[String],
    ) -> &'static str {
        let now = (self.now)();
        let Some(facts) = &installation.certificate else { return "missing" };
        if authority.is_some_and(|authority| tainted.iter().any(|name| name == authority)) {
            "tainted"
        } else if facts.not_after <= now {
            "expired"
        } else if renewal::due_at(host, &installation.id, Some(renewal::life(facts))) <= now {
            "expiring"
        } else {
            "ok"
        }
    }

    /// One certificate by its fingerprint or the first digits of it: every place it lies, its
    /// issuer, and what is wrong with it.
    pub(super) async fn show_certificate(&self, digits: &str) -> Result<ShowCertificateReply, Status> {
        let filter =
            CertificateFilter { fingerprints: vec![digits.to_owned()], ..CertificateFilter::default() };
        let listing = Listing {
            selection: Selection::default(),
            filter: Filter::new(&filter).map_err(|error| Status::invalid_argument(chain(&error)))?,
            sort: CertificateSort::Host,
            reverse: false,
            authorities: self.issuer_keys(),
            tainted: self.tainted().await?,
        };
        let mut reply = ShowCertificateReply::default();
        for host in self.hosts_meant(&listing.selection).await? {
            let (installations, findings) = self.inventory(&host).await?;
            for row in self.rows_of(&listing, &host, installations) {
                let print = fingerprint(&row);
                if reply.places.first().is_some_and(|first| fingerprint(first) != print) {
                    return Err(Status::invalid_argument(format!(
                        "{digits} begins the fingerprints of several certificates: give more digits"
                    )));
                }
                let installation = row.installation.clone().unwrap_or_default();
                for finding in findings.iter().filter(|finding| is_about(finding, &installation)) {
                    let found = HostFinding { host: host.clone(), finding: Some(finding.clone()) };
                    if reply.findings.len() < FINDINGS && !reply.findings.contains(&found) {
                        reply.findings.push(found);
                    }
                }
                reply.total += 1;
                if reply.places.len() < PLACES {
                    reply.places.push(row);
                }
            }
        }
        let Some(first) = reply.places.first() else {
            let digits: String = digits.chars().take(80).collect();
            return Err(Status::not_found(format!(
                "no certificate with fingerprint {digits} is on record; `reseal certs` lists what is"
            )));
        };
        if let Some(name) = first.authority.strip_prefix("builtin/") {
            reply.authority = self.authority(name).await?;
            reply.root = Some(self.root());
        }
        Ok(reply)
    }
}

/// Sends the next part of a sorted list; true while there is another one to be made.
pub(super) async fn send_window<T>(window: &mut Window<T>, rows: &Rows<T>) -> bool {
    let (sorted, more) = window.take();
    for row in sorted {
        if rows.send(Ok(row)).await.is_err() {
            return false;
        }
    }
    more
}

fn fingerprint(row: &CertificateRow) -> &[u8] {
    let facts = row.installation.as_ref().and_then(|installation| installation.certificate.as_ref());
    facts.map_or(&[], |facts| &facts.fingerprint)
}

/// Is a finding about what lies there, or about where it is served?
fn is_about(finding: &Finding, installation: &Installation) -> bool {
    let object = finding.object.as_str();
    let is_at = |address: &str| {
        object.strip_prefix(address).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ' ']))
    };
    object == installation.id
        || object == installation.label
        || installation.endpoints.iter().any(|endpoint| is_at(&endpoint.address))
}
