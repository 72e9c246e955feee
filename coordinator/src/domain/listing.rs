//! Lists that an operator filters and sorts: which rows are meant, and in what order.
//!
//! A list that is not in the order of the store is made window by window: the rows that
//! come first and fit into a bound, then the next ones, each time from all of them. Memory
//! stays the same however long the list is, and a short one takes one pass.

use std::collections::BTreeMap;

use reseal_proto::v1::{self, CertificateFilter, CertificateRow, CertificateSort, Management, Origin};

use super::name::glob;

/// More entries in one filter are refused.
const MAX_ENTRIES: usize = 1_000;
/// Hex digits of a fingerprint at least.
const LEAST_DIGITS: usize = 8;

/// What a certificate on record can be; in the order in which people want to see them.
pub const STATUSES: [&str; 5] = ["tainted", "expired", "missing", "expiring", "ok"];

/// How bad a finding can be, the worst first.
pub const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// What was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A status.
    #[error("{0:?} is no status: there are tainted, expired, missing, expiring and ok")]
    Status(String),
    /// A severity.
    #[error("{0:?} is no severity: there are critical, warning and info")]
    Severity(String),
    /// A fingerprint.
    #[error("{0:?} is no SHA-256 fingerprint: {LEAST_DIGITS} to 64 hex digits")]
    Fingerprint(String),
    /// Too many entries.
    #[error("the filter has {0} entries, more than the {MAX_ENTRIES} that are accepted")]
    Size(usize),
}

/// The hex digits of a SHA-256 fingerprint, or the first of them, as people write it: in
/// either case, with or without colons. In lower case.
pub fn fingerprint_digits(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let good =
        (LEAST_DIGITS..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| digits.to_ascii_lowercase())
}

/// Which certificates are meant, beyond a selection. Kinds are joined by AND, entries of one by OR.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    statuses: Vec<String>,
    /// In lower case.
    issuers: Vec<String>,
    managements: Vec<Management>,
    origins: Vec<Origin>,
    containers: Vec<String>,
    /// Hex, or the first digits of it.
    fingerprints: Vec<String>,
}

impl Filter {
    /// Understands a filter.
    pub fn new(wire: &CertificateFilter) -> Result<Self, FilterError> {
        let entries = wire.statuses.len()
            + wire.issuers.len()
            + wire.managements.len()
            + wire.origins.len()
            + wire.containers.len()
            + wire.fingerprints.len();
        if entries > MAX_ENTRIES {
            return Err(FilterError::Size(entries));
        }
        let brief = |text: &String| text.chars().take(80).collect::<String>();
        if let Some(wrong) = wire.statuses.iter().find(|status| !STATUSES.contains(&status.as_str())) {
            return Err(FilterError::Status(brief(wrong)));
        }
        let digits =
            |text: &String| fingerprint_digits(text).ok_or_else(|| FilterError::Fingerprint(brief(text)));
        Ok(Self {
            statuses: wire.statuses.clone(),
            issuers: wire.issuers.iter().map(|issuer| issuer.to_lowercase()).collect(),
            managements: wire.managements().collect(),
            origins: wire.origins().collect(),
            containers: wire.containers.clone(),
            fingerprints: wire.fingerprints.iter().map(digits).collect::<Result<_, _>>()?,
        })
    }

    /// Is this row meant?
    pub fn admits(&self, row: &CertificateRow) -> bool {
        let Some(installation) = &row.installation else { return false };
        let facts = installation.certificate.as_ref();
        let any = |empty: bool, found: bool| empty || found;
        any(self.statuses.is_empty(), self.statuses.contains(&row.status))
            && any(self.managements.is_empty(), self.managements.contains(&installation.management()))
            && any(self.origins.is_empty(), self.origins.contains(&installation.origin()))
            && any(
                self.containers.is_empty(),
                self.containers.iter().any(|pattern| {
                    installation.consumers.iter().any(|consumer| glob(pattern, &consumer.container))
                }),
            )
            && any(self.issuers.is_empty(), self.is_from(row))
            && any(
                self.fingerprints.is_empty(),
                facts.is_some_and(|facts| {
                    let print = hex::encode(&facts.fingerprint);
                    self.fingerprints.iter().any(|digits| print.starts_with(digits))
                }),
            )
    }

    /// By the name of one of our authorities, or by a part of what the certificate says.
    fn is_from(&self, row: &CertificateRow) -> bool {
        let authority = row.authority.to_lowercase();
        let facts = row.installation.as_ref().and_then(|installation| installation.certificate.as_ref());
        let stated = facts.map(|facts| facts.issuer.to_lowercase()).unwrap_or_default();
        self.issuers.iter().any(|issuer| {
            authority == *issuer
                || authority.strip_prefix("builtin/") == Some(issuer)
                || (issuer.len() > 2 && stated.contains(issuer))
        })
    }
}

/// Which findings are meant. Kinds are joined by AND, entries of one by OR.
#[derive(Clone, Debug, Default)]
pub struct FindingFilter {
    ids: Vec<String>,
    severities: Vec<String>,
    /// In lower case.
    objects: Vec<String>,
}

impl FindingFilter {
    /// Understands a filter; hosts are not its business.
    pub fn new(wire: &v1::ListFindingsRequest) -> Result<Self, FilterError> {
        let entries = wire.ids.len() + wire.severities.len() + wire.objects.len();
        if entries > MAX_ENTRIES {
            return Err(FilterError::Size(entries));
        }
        if let Some(wrong) = wire.severities.iter().find(|word| !SEVERITIES.contains(&word.as_str())) {
            return Err(FilterError::Severity(wrong.chars().take(80).collect()));
        }
        Ok(Self {
            ids: wire.ids.clone(),
            severities: wire.severities.clone(),
            objects: wire.objects.iter().map(|object| object.to_lowercase()).collect(),
        })
    }

    /// Can a finding of this kind be meant?
    pub fn may_admit(&self, id: &str) -> bool {
        let severity = reseal_proto::findings::known(id).map(|known| known.severity);
        (self.ids.is_empty() || self.ids.iter().any(|wanted| glob(wanted, id)))
            && (self.severities.is_empty()
                || severity.is_some_and(|severity| self.severities.iter().any(|wanted| wanted == severity)))
    }

    /// Is this finding meant?
    pub fn admits(&self, row: &v1::HostFinding) -> bool {
        let Some(finding) = &row.finding else { return false };
        let object = || finding.object.to_lowercase();
        (self.ids.is_empty() || self.ids.iter().any(|wanted| glob(wanted, &finding.id)))
            && (self.severities.is_empty() || self.severities.contains(&finding.severity))
            && (self.objects.is_empty() || self.objects.iter().any(|part| object().contains(part)))
    }
}

/// What a row is sorted by: a smaller one comes first.
pub fn sort_key(sort: CertificateSort, row: &CertificateRow) -> Key {
    let installation = row.installation.as_ref();
    let facts = installation.and_then(|installation| installation.certificate.as_ref());
    let first = |names: &[String]| names.first().map(|name| name.to_lowercase());
    let by = match sort {
        CertificateSort::Host => Vec::new(),
        CertificateSort::Name => {
            let name = facts.and_then(|facts| first(&facts.names));
            let name = name.or_else(|| installation.and_then(|installation| first(&installation.names)));
            name.unwrap_or_default().into_bytes()
        }
        // What is missing before what has expired; the sign is moved out of the way.
        CertificateSort::Expires => facts.map_or_else(Vec::new, |facts| {
            (facts.not_after.cast_unsigned() ^ (1 << 63)).to_be_bytes().to_vec()
        }),
        CertificateSort::Issuer => match row.authority.as_str() {
            "" => facts.map(|facts| facts.issuer.to_lowercase()).unwrap_or_default().into_bytes(),
            authority => authority.as_bytes().to_vec(),
        },
        CertificateSort::Status => {
            let rank = STATUSES.iter().position(|status| *status == row.status).unwrap_or(STATUSES.len());
            vec![u8::try_from(rank).unwrap_or(u8::MAX)]
        }
    };
    let id = installation.map(|installation| installation.id.clone()).unwrap_or_default();
    (by, row.host.clone(), id)
}

/// What findings are sorted by, likewise.
pub fn finding_key(sort: v1::FindingSort, row: &v1::HostFinding, number: u32) -> Key {
    let finding = row.finding.clone().unwrap_or_default();
    let rank = reseal_proto::findings::rank(&finding.severity);
    let (host, id, object) = (row.host.as_bytes(), finding.id.as_bytes(), finding.object.as_bytes());
    let by = match sort {
        v1::FindingSort::Severity => [&[rank][..], id].join(&0),
        v1::FindingSort::Host => [host, &[rank][..], id].join(&0),
        v1::FindingSort::Finding => [id, &[rank][..]].join(&0),
        v1::FindingSort::Object => object.to_vec(),
    };
    // One host may say the same of one object twice.
    (by, row.host.clone(), format!("{}\0{}\0{number:010}", finding.object, finding.id))
}

/// What is sorted by, then host and id: no two rows have the same.
pub type Key = (Vec<u8>, String, String);

/// The part of a sorted list that is made in one pass over all rows.
pub struct Window<T> {
    /// Bytes of all rows in it, at most; one row always fits.
    budget: usize,
    /// The last first.
    reverse: bool,
    rows: BTreeMap<Key, (usize, T)>,
    bytes: usize,
    /// The last row of the windows before.
    before: Option<Key>,
    /// Something has found no room.
    cut: bool,
}

impl<T> Window<T> {
    /// The first window; `reverse`: the list is wanted the other way round.
    pub fn new(budget: usize, reverse: bool) -> Self {
        Self { budget, reverse, rows: BTreeMap::new(), bytes: 0, before: None, cut: false }
    }

    /// A row of `size` bytes: kept when it comes after the windows before and there is room,
    /// or something that comes later can make room.
    pub fn offer(&mut self, key: Key, size: usize, row: T) {
        if self.before.as_ref().is_some_and(|before| !self.is_after(&key, before)) {
            return;
        }
        let last = if self.reverse { self.rows.first_key_value() } else { self.rows.last_key_value() };
        if self.cut && last.is_some_and(|(last, _)| self.is_after(&key, last)) {
            return;
        }
        self.bytes += size;
        if let Some((replaced, _)) = self.rows.insert(key, (size, row)) {
            self.bytes -= replaced;
        }
        while self.bytes > self.budget && self.rows.len() > 1 {
            let last = if self.reverse { self.rows.pop_first() } else { self.rows.pop_last() };
            self.bytes -= last.map_or(0, |(_, (size, _))| size);
            self.cut = true;
        }
    }

    /// The rows in order, and whether there are more: then everything is offered again.
    pub fn take(&mut self) -> (Vec<T>, bool) {
        let rows = std::mem::take(&mut self.rows);
        let last = if self.reverse { rows.first_key_value() } else { rows.last_key_value() };
        if let Some((last, _)) = last {
            self.before = Some(last.clone());
        }
        self.bytes = 0;
        let more = std::mem::take(&mut self.cut);
        let mut rows: Vec<T> = rows.into_values().map(|(_, row)| row).collect();
        if self.reverse {
            rows.reverse();
        }
        (rows, more)
    }

    fn is_after(&self, key: &Key, other: &Key) -> bool {
        if self.reverse { key < other } else { key > other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reseal_proto::v1::{CertificateFacts, Consumer, Installation};

    fn row(host: &str, status: &str, authority: &str, issuer: &str, not_after: i64) -> CertificateRow {
        CertificateRow {
            host: host.into(),
            status: status.into(),
            authority: authority.into(),
            installation: Some(Installation {
                id: "/a".into(),
                management: Management::Discovered.into(),
                origin: Origin::Image.into(),
                consumers: vec![Consumer { container: "web-front".into(), ..Consumer::default() }],
                certificate: Some(CertificateFacts {
                    fingerprint: vec![0xab; 32],
                    issuer: issuer.into(),
                    not_after,
                    ..CertificateFacts::default()
                }),
                ..Installation::default()
            }),
        }
    }

    fn admits(filter: CertificateFilter) -> bool {
        let row = row("h", "expired", "builtin/a", "CN=Example Issuing CA", 1);
        Filter::new(&filter).unwrap().admits(&row)
    }

    #[test]
    fn each_kind_of_filter() {
        let base = CertificateFilter::default;
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert!(admits(base()));
        assert!(admits(CertificateFilter { statuses: texts(&["ok", "expired"]), ..base() }));
        assert!(!admits(CertificateFilter { statuses: texts(&["ok"]), ..base() }));
        assert!(admits(CertificateFilter { managements: vec![Management::Discovered.into()], ..base() }));
        // The first word of each enumeration is 0 on the wire, and is meant all the same.
        assert!(!admits(CertificateFilter { managements: vec![Management::Labels.into()], ..base() }));
        assert!(!admits(CertificateFilter { origins: vec![Origin::File.into()], ..base() }));
        assert!(admits(CertificateFilter { origins: vec![Origin::Image.into()], ..base() }));
        for (issuer, found) in
            [("a", true), ("builtin/A", true), ("issuing ca", true), ("b", false), ("i", false)]
        {
            assert_eq!(admits(CertificateFilter { issuers: texts(&[issuer]), ..base() }), found, "{issuer}");
        }
        assert!(admits(CertificateFilter { containers: texts(&["web-*"]), ..base() }));
        assert!(!admits(CertificateFilter { containers: texts(&["web"]), ..base() }));
        assert!(admits(CertificateFilter { fingerprints: texts(&["AB:AB:AB:AB"]), ..base() }));
        assert!(!admits(CertificateFilter { fingerprints: texts(&["abababac"]), ..base() }));
        let both = CertificateFilter { statuses: texts(&["expired"]), containers: texts(&["db"]), ..base() };
        assert!(!admits(both), "kinds are joined by AND");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let wrong = CertificateFilter { statuses: vec!["good".into()], ..CertificateFilter::default() };
        assert_eq!(Filter::new(&wrong).unwrap_err(), FilterError::Status("good".into()));
        let short = CertificateFilter { fingerprints: vec!["abc".into()], ..CertificateFilter::default() };
        assert!(matches!(Filter::new(&short), Err(FilterError::Fingerprint(_))));
        let many = CertificateFilter { issuers: vec!["x".into(); 1_001], ..CertificateFilter::default() };
        assert_eq!(Filter::new(&many).unwrap_err(), FilterError::Size(1_001));
    }

    #[test]
    fn findings_are_filtered_by_kind_severity_and_object() {
        let row = v1::HostFinding {
            host: "h".into(),
            finding: Some(v1::Finding {
                id: "weak-key".into(),
                object: "/srv/Web/site.crt".into(),
                severity: "warning".into(),
                ..v1::Finding::default()
            }),
        };
        let admits = |ids: &[&str], severities: &[&str], objects: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let wire = v1::ListFindingsRequest {
                ids: texts(ids),
                severities: texts(severities),
                objects: texts(objects),
                ..v1::ListFindingsRequest::default()
            };
            FindingFilter::new(&wire).unwrap().admits(&row)
        };
        assert!(admits(&[], &[], &[]) && admits(&["weak-*"], &["info", "warning"], &["web/"]));
        assert!(
            !admits(&["expired"], &[], &[]) && !admits(&[], &["info"], &[]) && !admits(&[], &[], &["db"])
        );
        let wrong = v1::ListFindingsRequest { severities: vec!["bad".into()], ..Default::default() };
        assert_eq!(FindingFilter::new(&wrong).unwrap_err(), FilterError::Severity("bad".into()));
        let only = v1::ListFindingsRequest { severities: vec!["critical".into()], ..Default::default() };
        let filter = FindingFilter::new(&only).unwrap();
        assert!(filter.may_admit("expired") && !filter.may_admit("key-shared-across-hosts"));
    }

    #[test]
    fn the_order_is_what_people_expect() {
        let key = |sort, status: &str, not_after| sort_key(sort, &row("h", status, "", "", not_after));
        use CertificateSort::{Expires, Status};
        assert!(
            key(Expires, "ok", -5) < key(Expires, "ok", 0) && key(Expires, "ok", 0) < key(Expires, "ok", 7)
        );
        assert!(key(Status, "tainted", 0) < key(Status, "expired", 0));
        assert!(key(Status, "expiring", 0) < key(Status, "ok", 0));
        let missing =
            CertificateRow { installation: Some(Installation::default()), ..row("h", "missing", "", "", 0) };
        assert!(sort_key(Expires, &missing) < key(Expires, "ok", i64::MIN + 1));
    }

    proptest! {
        /// Whatever the budget, the windows together are the sorted list.
        #[test]
        fn windows_add_up(
            rows in proptest::collection::btree_map(0u16..500, 1usize..40, 0..80),
            budget in 1usize..400,
            reverse: bool,
        ) {
            let key = |row: u16| (row.to_be_bytes().to_vec(), String::new(), String::new());
            let mut window = Window::new(budget, reverse);
            let mut listed = Vec::new();
            for _ in 0..=rows.len() {
                for (row, size) in &rows {
                    window.offer(key(*row), *size, *row);
                }
                let (part, more) = window.take();
                prop_assert!(!part.is_empty() || !more);
                listed.extend(part);
                if !more { break; }
            }
            let mut wanted: Vec<u16> = rows.into_keys().collect();
            if reverse { wanted.reverse(); }
            prop_assert_eq!(listed, wanted);
        }
    }
}
